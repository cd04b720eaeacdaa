import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Random;
import org.apache.kafka.common.utils.Utils;

/** Prints the lines of murmur2.txt: key in base64, murmur2, and the partition of 1, 3, 4, 12 and 1000. */
public class Murmur2Vectors {
    public static void main(String[] args) {
        List<byte[]> keys = new ArrayList<>();
        keys.add(new byte[0]);
        String digits = "123456789";
        for (int n = 1; n <= 9; n++) keys.add(digits.substring(0, n).getBytes(StandardCharsets.UTF_8));
        for (String s : new String[] {
                "a", "ab", "abc", "abcd", "0", "order-1", "order-2", "order-12345678", "Grüße", "注文-42", "заказ",
                "✓", "😀", "e\u0301", "\u00e9", "null", " ", "\n", "\u0000", "\u0000\u0000\u0000\u0000",
                "550e8400-e29b-41d4-a716-446655440000", "x".repeat(255), "ü".repeat(255), "y".repeat(10000)})
            keys.add(s.getBytes(StandardCharsets.UTF_8));
        Random random = new Random(2026);
        for (int n = 0; n < 64; n++) {
            byte[] key = new byte[random.nextInt(40)];
            random.nextBytes(key);
            keys.add(key);
        }
        for (byte b : new byte[] {-1, -128, 127}) keys.add(new byte[] {b});
        System.out.println("# Made by Murmur2Vectors.java with kafka-clients " + args[0] + ":");
        System.out.println("#   java -cp kafka-clients.jar:slf4j-api.jar Murmur2Vectors.java " + args[0] + " > murmur2.txt");
        System.out.println("# key in base64 (- is the empty key), Utils.murmur2, toPositive(murmur2) % 1, 3, 4, 12, 1000");
        for (byte[] key : keys) {
            int hash = Utils.murmur2(key);
            StringBuilder line = new StringBuilder(key.length == 0 ? "-" : Base64.getEncoder().encodeToString(key));
            line.append(' ').append(hash);
            for (int n : new int[] {1, 3, 4, 12, 1000}) line.append(' ').append(Utils.toPositive(hash) % n);
            System.out.println(line);
        }
    }
}
