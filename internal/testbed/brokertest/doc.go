// Package brokertest brings a real Apache Kafka and a real RabbitMQ to the tests.
//
// Most tests ask for the broker of the run and share it, each with topics, queues and exchanges of
// its own:
//
//	func TestMain(m *testing.M) { brokertest.Main(m) }
//
//	func TestPublish(t *testing.T) {
//		broker := brokertest.Kafka(t) // or brokertest.RabbitMQ(t)
//		topic := broker.Topic(t, 4)
//
// Under `make test` (cmd/testenv) that broker comes from the environment: SAGAZ_TEST_KAFKA is a
// plaintext address, and SAGAZ_TEST_KAFKA_STATE names a JSON file with the other listeners,
// certificates and passwords (the exported fields of KafkaServer); SAGAZ_TEST_RABBITMQ and
// SAGAZ_TEST_RABBITMQ_STATE likewise. When nothing is set, as when one package is tested by hand,
// the first test that asks starts the broker and Main stops it.
//
// A test that stops, kills or starves a broker starts its own with StartKafka or StartRabbitMQ.
// Whatever is started listens on 127.0.0.1 only, runs as the calling user, root or not, and ends
// with this process even if that is killed.
package brokertest
