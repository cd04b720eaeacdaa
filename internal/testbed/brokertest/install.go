package brokertest

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/sagaz-relay/relay/internal/testbed/cache"
	"github.com/sagaz-relay/relay/internal/testbed/debian"
)

// What the brokers need of Debian. (Its default JRE is 17 in Debian 12, and newer in later ones.)
const (
	jrePackage    = "default-jre-headless"
	mavenPackage  = "maven"
	rabbitPackage = "rabbitmq-server"
)

// EnsureKafka installs what StartKafka needs and this machine lacks, when it is Debian (or Ubuntu)
// and we are root. Otherwise the error is the line to run.
func EnsureKafka(ctx context.Context, log io.Writer) error {
	var need []string
	if _, err := exec.LookPath("java"); err != nil {
		need = append(need, jrePackage)
	}
	root, err := cache.DefaultRoot()
	if err != nil {
		return err
	}
	// with the jars there, Maven has nothing to do
	if _, err := os.Stat(filepath.Join(root, kafkaCacheName())); err != nil {
		if _, err := exec.LookPath("mvn"); err != nil {
			need = append(need, mavenPackage)
		}
	}
	return debian.Install(ctx, log, need...)
}

// EnsureRabbitMQ is EnsureKafka for StartRabbitMQ.
func EnsureRabbitMQ(ctx context.Context, log io.Writer) error {
	if _, err := rabbitScripts(); err != nil {
		return debian.Install(ctx, log, rabbitPackage)
	}
	return nil
}
