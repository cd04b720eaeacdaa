package address_test

import (
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/address"
)

// Malformed are addresses with the password in a wrong place; SECRET is the part that must not be
// shown.
var malformed = map[string][]string{
	"database": {
		"postgresql://u:12/SECRET@host/db", "postgresql://u:/SECRET@host/db", "postgresql://u:a?SECRET@host/db", "postgresql://u:a#SECRET@host/db",
		"postgresql://u:12?x=SECRET@host/db", "postgresql://u:a@SECRET@host/db", "postgresql://u:a%SECRET@host/db", "postgresql://u:%zzSECRET@host/db",
		"postgresql://u:a SECRET@host/db", "postgresql://u:SECRET", "postgresql://u:SECRET/db", "postgresql://u:a:SECRET@host/db", "postgresql://u%3ASECRET@host/db",
		"postgresql://host/db?password=x&SECRET", "postgresql://host/db?password=x&SECRET=1", "postgresql://host/u:SECRET", "postgresql://host:5432:SECRET/db",
		"postgresql://[SECRET]/db", "postgresql://[::1]SECRET/db", "postgresql://ho%40SECRET/db",
		"postgresql:/u:SECRET@host/db", "postgresql//u:SECRET@host/db", "POSTGRESQL://u:SECRET@host/db", "jdbc:postgresql://host/db?user=u&password=SECRET", "postgresql+asyncpg://u:SECRET@host/db",
		"mysql://u:SECRET@host/db", "u:SECRET@host/db", "SECRET", "host=db password=my SECRET dbname=x", "host=db password=a'b SECRET=1", "host=db password='my SECRET",
		"host=u:SECRET@db dbname=x", "host=db port=SECRET", "host=db dbname=postgresql://u:SECRET@host/db", "user=u:SECRET host=db", "host=db password='it's SECRET' user=u",
		"postgresql://u:p@host/db\nSECRET", "postgresql://u:p@host/db#SECRET", "=SECRET", "host = db SECRET",
	},
	"amqp": {
		"amqp://u:12/SECRET@host/v", "amqp://u:/SECRET@host", "amqp://u:a?SECRET@host", "amqp://u:a#SECRET@host", "amqp://u:a@SECRET@host/", "amqp://u:a%SECRET@host/",
		"amqp://u:a SECRET@host/", "amqp://u:SECRET", "amqp://u:a:SECRET@host", "amqp://host/a/SECRET", "amqp://host/?x&SECRET", "amqp://host/?SECRET=1", "amqp:/u:SECRET@host", "rabbitmq://u:SECRET@host",
		"u:SECRET@host", "SECRET",
	},
	"kafka": {
		"u:SECRET@host:9092", "u:12,SECRET@host:9092", "host:SECRET", "u:12/SECRET@host:9092", "kafka://u:SECRET@host", "SECRET://host", "host:9092/SECRET", "ho st:SECRET", "host:9092?SECRET",
		"SASL_SSL://u:SECRET@host:9093",
	},
	"http": {
		"http://u:SECRET@host:4318", "http://u:12/SECRET@host:4318", "http://u:SECRET", "http://host?SECRET", "http://host#SECRET", "http://host:4318/?api-key=SECRET", "u:SECRET@host", "ftp://SECRET", "https://u:a SECRET@host",
	},
	"webhook": {
		"http://u:SECRET@", "http://u:12/SECRET@host", "http://u:SECRET", "https://host?SECRET", "https://host/#SECRET", "https://host/?a=b&SECRET", "u:SECRET@host", "ftp://u:SECRET@host", "https://u:a SECRET@host/",
		"https://u:a@SECRET@host/", "https://a,b/SECRET", "https://host/%zzSECRET", "https://host/a SECRET", "SECRET",
	},
}

func check(kind, s string) error {
	switch kind {
	case "database":
		return address.Database(s)
	case "amqp":
		return address.AMQP(s)
	case "kafka":
		return address.Brokers(strings.Split(s, ","))
	case "webhook":
		return address.Webhook(s)
	default:
		return address.HTTP(s)
	}
}

func TestMalformed(t *testing.T) {
	for kind, list := range malformed {
		for _, s := range list {
			err := check(kind, s)
			if err == nil {
				t.Errorf("%s %q: accepted", kind, s)
			} else if strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%s %q: the error repeats it: %v", kind, s, err)
			}
			if shown := address.Show(s); strings.Contains(shown, "SECRET") && strings.ContainsAny(s, "@?#") {
				t.Errorf("%s %q: shown as %q", kind, s, shown)
			}
		}
	}
}

func TestWellFormed(t *testing.T) {
	for kind, list := range map[string][]string{
		"database": {
			"", "postgresql://", "postgresql://host", "postgres://u:p@host:5432/db", "postgresql://u:12%2FSECRET%40%3A%3F%23%25@host/db", "postgresql://u@/db?host=%2Fvar%2Frun%2Fpostgresql",
			"postgresql://u:1,p@h1:5432/db", "postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=read-write", "postgresql://u:p@[::1]:5432/db", "postgresql://%2Fvar%2Frun/db", "postgresql:///db?user=u&password=p",
			"postgresql://u:p!$&'()*+,;=~-._@host/db?sslmode=require&connect_timeout=5&pgbouncer=true", "postgresql://host/my%20db?application_name=a%20b&options=-c%20x%3Dy",
			"postgresql://me%40corp:p@host.postgres.database.azure.com/db", "host=db user=me@corp password='my SECRET' dbname=x", "host = db  port = 5432\nuser=u", `host=/var/run password=it\'s`,
			"host=h1,h2 port=5432,5433", "service=prod", "host=::1", "postgresql://db_1.my-ns.svc:5432/shop", "postgresql://u:p@host/db?TimeZone=UTC&search_path=a,b&sagaz.x=1", "postgresql://bücher.example/db",
		},
		"amqp":  {"amqp://guest:guest@localhost:5672/", "amqps://u:p%2F@host/%2Fv", "amqp://host", "amqp://host/vhost?heartbeat=5", "amqp://[::1]:5672/", "amqp://u@host/v-1.x"},
		"kafka": {"host", "host:9092", "h1:9092,h2:9092", "kafka://h1:9092,h2", "[::1]:9092", "10.0.0.1:9092", "::1", "b-1.x_y.kafka.eu-west-1.amazonaws.com:9096"},
		"http":  {"http://host:4318", "https://host", "http://[::1]:4317", "https://host/otlp/v1", "http://otel-collector.monitoring.svc:4317/"},
		"webhook": {
			"https://host", "http://u:p%40@host:8080/a/b?token=x&n=1", "https://[::1]:8443/", "https://hooks.example.com/{topic}?of={topic}", "http://orders.shop.svc.cluster.local:8080/events",
		},
	} {
		for _, s := range list {
			if err := check(kind, s); err != nil {
				t.Errorf("%s %q: %v", kind, s, err)
			}
		}
	}
}

func TestShow(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "h1:9092,h2:9092": "h1:9092,h2:9092", "u:p@h1:9092": "(set)", "h1:x": "(set)", "amqp://u:p@host/v": "amqp://host/v", "http://host:4318/a": "http://host:4318/a",
		"http://host/?k=v": "http://host/", "http://u:12/p@host": "(set)",
	} {
		if got := address.Show(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
}
