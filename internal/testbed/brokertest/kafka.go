package brokertest

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/internal/testbed/cache"
	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/debian"
)

// KafkaVersion is the Apache Kafka that StartKafka runs, as pinned in testdata/kafka/pom.xml.
const KafkaVersion = "4.1.0"

//go:embed testdata/kafka/pom.xml
var kafkaPOM []byte

// KafkaOptions are where a Kafka broker runs. The zero value will do.
type KafkaOptions struct {
	// configuration, data and logs; default a new temporary directory, removed by Close
	Dir      string
	CacheDir string // the jars; default cache.DefaultRoot()
	// run it in Docker; default SAGAZ_TEST_DOCKER=1, or else as a process of this machine
	Docker bool
	Log    io.Writer // progress lines for a person (downloading, starting); default none
	// Advertise is the address (host:port) that the broker gives to clients of the listener
	// SASL_PLAINTEXT, for a proxy in front of it: a client that has found one broker asks it for
	// the others. Default: the listener's own.
	Advertise string
	// Config are further lines of server.properties; the last of one name counts, so they win over
	// ours.
	Config []string
	// JVM are further options of Java; the last of one name counts.
	JVM []string
}

// KafkaServer is an Apache Kafka node (KRaft, broker and controller in one). Addresses are
// host:port.
//
// The exported fields are everything a client needs, and do not change over a restart. Topics are
// created on first use, with four partitions. User and Password are known to PLAIN, SCRAM-SHA-256
// and SCRAM-SHA-512 on both SASL listeners.
type KafkaServer struct {
	Plaintext     string // no TLS, no authentication
	SSL           string // TLS
	MTLS          string // TLS, and the client must show ClientCert
	SASLPlaintext string // SASL without TLS
	SASLSSL       string // SASL over TLS

	CAFile     string // signed the broker's certificate
	ClientCert string
	ClientKey  string
	User       string
	Password   string

	node
	dir       string
	ownDir    bool
	advertise string
	config    []string
	jvm       []string
	libs      string // directory of the jars
}

// StartKafka starts a broker and waits until it takes requests. It needs a JRE 17 or newer, and
// Maven unless the jars are in the cache already (or Docker); the error has how to get them.
func StartKafka(ctx context.Context, opts KafkaOptions) (*KafkaServer, error) {
	k := &KafkaServer{User: "relay", Password: "relay-secret", dir: opts.Dir, advertise: opts.Advertise, config: opts.Config, jvm: opts.JVM}
	docker := opts.Docker || viaDocker()
	var err error
	if !docker {
		if _, err := exec.LookPath("java"); err != nil {
			return nil, debian.Missing("java", jrePackage)
		}
		if k.libs, err = kafkaLibs(ctx, opts); err != nil {
			return nil, err
		}
	}
	if k.dir == "" {
		if k.dir, err = os.MkdirTemp("", "sagaz-kafka-"); err != nil {
			return nil, fmt.Errorf("create directory for kafka: %w", err)
		}
		k.ownDir = true
	}
	if k.dir, err = filepath.Abs(k.dir); err != nil {
		return nil, fmt.Errorf("find directory for kafka: %w", err)
	}
	if docker {
		err = k.configureContainer()
	} else {
		err = k.configureProcess(ctx)
	}
	if err == nil {
		err = k.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// kafkaLibs returns the directory with Kafka's jars, after a download if need be.
func kafkaLibs(ctx context.Context, opts KafkaOptions) (string, error) {
	root := opts.CacheDir
	if root == "" {
		var err error
		if root, err = cache.DefaultRoot(); err != nil {
			return "", err
		}
	}
	return cache.Fill(ctx, root, kafkaCacheName(), func(dir string) error {
		if _, err := exec.LookPath("mvn"); err != nil {
			return debian.Missing("mvn (Maven)", mavenPackage)
		}
		progress(opts.Log, "downloading Apache Kafka %s with Maven", KafkaVersion)
		pom := filepath.Join(dir, "pom.xml")
		if err := os.WriteFile(pom, kafkaPOM, 0o644); err != nil {
			return fmt.Errorf("write pom for kafka: %w", err)
		}
		mvn := exec.CommandContext(ctx, "mvn", "-q", "-B", "-f", pom,
			"org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies", "-DoutputDirectory="+dir)
		if out, err := mvn.CombinedOutput(); err != nil {
			return fmt.Errorf("download Apache Kafka %s with Maven: %w\n%s", KafkaVersion, err, lastLines(out, 10))
		}
		return nil
	})
}

// kafkaCacheName changes with the pom, so that a new version does not meet the old one's jars.
func kafkaCacheName() string {
	return fmt.Sprintf("kafka-%s-%x", KafkaVersion, sha256.Sum256(kafkaPOM))[:len("kafka-")+len(KafkaVersion)+9]
}

// configureProcess configures a broker that runs on this machine, and formats its data directory.
func (k *KafkaServer) configureProcess(ctx context.Context) error {
	if _, err := k.configure(k.dir, "127.0.0.1", filepath.Join(k.dir, "data")); err != nil {
		return err
	}
	format := exec.CommandContext(ctx, "java", k.javaArgs("kafka.tools.StorageTool", "format",
		"-t", clusterID(), "-c", filepath.Join(k.dir, "server.properties"),
		"--add-scram", fmt.Sprintf("SCRAM-SHA-256=[name=%s,password=%s]", k.User, k.Password),
		"--add-scram", fmt.Sprintf("SCRAM-SHA-512=[name=%s,password=%s]", k.User, k.Password))...)
	if out, err := format.CombinedOutput(); err != nil {
		return fmt.Errorf("format kafka's data directory: %w\n%s", err, lastLines(out, 10))
	}
	return nil
}

func (k *KafkaServer) configureContainer() error {
	ports, err := k.configure(inDocker, "0.0.0.0", "/var/lib/kafka/data")
	if err != nil {
		return err
	}
	k.container, err = newContainer("kafka", k.dir, ports,
		"CLUSTER_ID="+clusterID(), "RELAY_USER="+k.User, "RELAY_PASSWORD="+k.Password)
	return err
}

func clusterID() string {
	id := make([]byte, 16)
	rand.Read(id)
	// the first character is a letter then: one that starts with '-' would be taken for an option
	id[0] &^= 0x80 | 0x40
	return base64.RawURLEncoding.EncodeToString(id)
}

// configure picks ports for the five listeners, makes certificates and writes the configuration.
// dir is k.dir under the broker's name for it, host what it listens on. Its clients find it at
// 127.0.0.1 in any case.
func (k *KafkaServer) configure(dir, host, data string) (ports []int, err error) {
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return nil, fmt.Errorf("create directory for kafka: %w", err)
	}
	if ports, err = child.FreePorts(6); err != nil {
		return nil, err
	}
	addr := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	k.Plaintext, k.SSL, k.MTLS, k.SASLPlaintext, k.SASLSSL = addr(0), addr(1), addr(2), addr(3), addr(4)
	controller := addr(5)

	certs, err := NewCerts(filepath.Join(k.dir, "certs"))
	if err != nil {
		return nil, err
	}
	k.CAFile, k.ClientCert, k.ClientKey = certs.CAFile, certs.ClientCert, certs.ClientKey
	// Kafka wants the key and the certificate in one file
	keystore := filepath.Join(k.dir, "certs", "server.keystore.pem")
	var pair []byte
	for _, path := range []string{certs.ServerKey, certs.ServerCert} {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read certificate file: %w", err)
		}
		pair = append(pair, pem...)
	}
	if err := os.WriteFile(keystore, pair, 0o644); err != nil {
		return nil, fmt.Errorf("write keystore for kafka: %w", err)
	}

	listeners := func(saslPlaintext string) string {
		return strings.Join([]string{
			"PLAINTEXT://" + k.Plaintext, "SSL://" + k.SSL, "MTLS://" + k.MTLS,
			"SASL_PLAINTEXT://" + saslPlaintext, "SASL_SSL://" + k.SASLSSL,
		}, ",")
	}
	conf := []string{
		"process.roles=broker,controller",
		"node.id=1",
		"controller.quorum.voters=1@" + controller,
		"controller.listener.names=CONTROLLER",
		"inter.broker.listener.name=PLAINTEXT",
		"listeners=" + strings.ReplaceAll(listeners(k.SASLPlaintext), "//127.0.0.1:", "//"+host+":") + ",CONTROLLER://" + controller,
		"advertised.listeners=" + listeners(cmp.Or(k.advertise, k.SASLPlaintext)),
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,MTLS:SSL," +
			"SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL",
		"ssl.keystore.type=PEM",
		"ssl.keystore.location=" + filepath.Join(dir, "certs", "server.keystore.pem"),
		"ssl.truststore.type=PEM",
		"ssl.truststore.location=" + filepath.Join(dir, "certs", "ca.pem"),
		"listener.name.mtls.ssl.client.auth=required",
		"log.dirs=" + data,
		"auto.create.topics.enable=true",
		"num.partitions=4",
		"default.replication.factor=1",
		"min.insync.replicas=1",
		"offsets.topic.replication.factor=1",
		"offsets.topic.num.partitions=4",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"share.coordinator.state.topic.replication.factor=1",
		"share.coordinator.state.topic.min.isr=1",
		"group.initial.rebalance.delay.ms=0",
		// A killed broker may come back only when its old registration has lapsed: 9 s by default.
		"broker.session.timeout.ms=4000",
		"broker.heartbeat.interval.ms=500",
	}
	for _, listener := range []string{"sasl_plaintext", "sasl_ssl"} {
		conf = append(conf,
			"listener.name."+listener+".sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
			"listener.name."+listener+".plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required "+
				`user_`+k.User+`="`+k.Password+`";`)
		for _, scram := range []string{"scram-sha-256", "scram-sha-512"} {
			conf = append(conf, "listener.name."+listener+"."+scram+
				".sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;")
		}
	}
	conf = append(conf, k.config...)
	logFile := k.logFile()
	if dir != k.dir {
		logFile = "/tmp/kafka.log" // a container's copy of dir is read-only
	}
	log4j := []string{
		"status=error",
		"appender.file.type=File", "appender.file.name=file", "appender.file.fileName=" + logFile,
		"appender.file.layout.type=PatternLayout", "appender.file.layout.pattern=%d %p %c{1}: %m%n",
		"rootLogger.level=warn", "rootLogger.appenderRef.file.ref=file",
	}
	for name, lines := range map[string][]string{"server.properties": conf, "log4j2.properties": log4j} {
		if err := os.WriteFile(filepath.Join(k.dir, name), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			return nil, fmt.Errorf("write configuration for kafka: %w", err)
		}
	}
	return ports[:5], nil
}

// javaArgs are for a short run with little to do: compiled quickly rather than well, with one
// thread for the garbage. A start takes half of the processor time that way.
func (k *KafkaServer) javaArgs(class string, args ...string) []string {
	jvm := append([]string{
		"-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Djava.awt.headless=true",
		"-Dlog4j2.configurationFile=" + filepath.Join(k.dir, "log4j2.properties"),
		"-cp", filepath.Join(k.libs, "*"),
	}, k.jvm...)
	return append(append(jvm, class), args...)
}

func (k *KafkaServer) logFile() string { return filepath.Join(k.dir, "kafka.log") }

// Start starts the broker after Stop or Kill, on the same data and ports, and waits until it takes
// requests.
func (k *KafkaServer) Start(ctx context.Context) error {
	if k.container != nil {
		if err := k.container.start(ctx); err != nil {
			return err
		}
		return ready(ctx, nil, "kafka", k.logs, k.Ping)
	}
	out, err := os.OpenFile(filepath.Join(k.dir, "kafka.out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open kafka's output file: %w", err)
	}
	defer out.Close() // the child has its own
	cmd := exec.Command("java", k.javaArgs("kafka.Kafka", filepath.Join(k.dir, "server.properties"))...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = k.dir, out, out
	if k.process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return err
	}
	return ready(ctx, k.process, "kafka", k.logs, k.Ping)
}

// Ping asks the plaintext listener whether the broker takes requests.
func (k *KafkaServer) Ping(ctx context.Context) error {
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(k.Plaintext), Timeout: 5 * time.Second, Transport: transport}
	answer, err := client.Metadata(ctx, &kafka.MetadataRequest{})
	if err == nil && len(answer.Brokers) == 0 {
		err = errors.New("the broker is not registered with its controller yet")
	}
	if err != nil {
		return fmt.Errorf("kafka at %s: %w", k.Plaintext, err)
	}
	return nil
}

// Close kills the broker if it still runs, and removes its directory unless the caller chose that.
func (k *KafkaServer) Close() error {
	err := k.remove()
	if k.ownDir {
		err = errors.Join(err, os.RemoveAll(k.dir))
	}
	return err
}

func (k *KafkaServer) logs() string {
	if k.container != nil {
		return k.container.logs()
	}
	return tail(filepath.Join(k.dir, "kafka.out"), 20) + tail(k.logFile(), 20)
}
