package main

import (
	"strings"
	"testing"
)

// TestSinksByDefault: what follows from the other settings when BROKER_TYPE is not set.
func TestSinksByDefault(t *testing.T) {
	const database = "postgresql://relay:s3cr3tword@127.0.0.1:1/shop"
	for _, tt := range []struct {
		name string
		env  map[string]string
		want string // an error with this
		hint string // else what the relay is given; "named" when BROKER_TYPE is
	}{
		{name: "Kafka", env: map[string]string{"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}},
		{name: "KafkaByBrokerURL", env: map[string]string{"BROKER_URL": "kafka:9092"}},
		{name: "Named", env: map[string]string{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "RABBITMQ_URL": "amqp://u:s3cr3tword@mq/"}, hint: "named"},
		{name: "BothAddresses", env: map[string]string{"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "RABBITMQ_URL": "amqp://u:s3cr3tword@mq/"}, hint: "RABBITMQ_URL"},
		{name: "AnExchange", env: map[string]string{"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "RABBITMQ_EXCHANGE": "orders"}, hint: "RABBITMQ_EXCHANGE"},
		{name: "AFile", env: map[string]string{"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "RELAY_FILE_PATH": "/tmp/x"}, hint: "RELAY_FILE_PATH"},
		{name: "KafkaAndAnAMQPBrokerURL", env: map[string]string{"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "BROKER_URL": "amqp://u:s3cr3tword@mq/"}, hint: "BROKER_URL"},
		{name: "RabbitMQAlone", env: map[string]string{"RABBITMQ_URL": "amqp://u:s3cr3tword@mq/"}, want: "the address is one of another broker (RABBITMQ_URL): want BROKER_TYPE=rabbitmq,"},
		{name: "AMQPBrokerURLAlone", env: map[string]string{"BROKER_URL": "amqps://u:s3cr3tword@mq/"}, want: "the address is one of another broker (BROKER_URL): want BROKER_TYPE=rabbitmq,"},
		{name: "AFileAlone", env: map[string]string{"RELAY_FILE_PATH": "/tmp/x"}, want: "the address is one of another broker (RELAY_FILE_PATH): want BROKER_TYPE=file,"},
		{name: "Nothing", want: "KAFKA_BOOTSTRAP_SERVERS (or BROKER_URL) is not set"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// WORKER_ID is a setting of the RabbitMQ sink, too
			env := map[string]string{"DATABASE_URL": database, "WORKER_ID": "w"}
			var environ []string
			for name, value := range tt.env {
				env[name] = value
			}
			s, err := loadSettings(func(name string) (string, bool) { v, ok := env[name]; return v, ok }, environ, "")
			if err != nil {
				t.Fatal(err)
			}
			err = s.all()
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "s3cr3tword") || exitCode(err) != exitConfig {
					t.Errorf("got %v, want one line with %s, and no password", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			hint := "named"
			if by := s.relay.SinksByDefault; by != nil {
				hint = by.Hint
			}
			if hint != tt.hint {
				t.Errorf("the relay is given %q, want %q", hint, tt.hint)
			}
		})
	}
}
