package brokertest

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed testdata/compose.yaml
var composeYAML []byte

// DockerRuns reports why brokers cannot be had from Docker here; nil when they can. It takes 5 s at
// most.
func DockerRuns(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := exec.LookPath("docker"); err != nil {
		return errors.New("docker is not installed")
	}
	if err := exec.CommandContext(ctx, "docker", "info").Run(); err != nil {
		return errors.New("docker is installed, but its daemon does not answer")
	}
	if err := exec.CommandContext(ctx, "docker", "compose", "version").Run(); err != nil {
		return errors.New("docker runs, but has no compose plugin")
	}
	return nil
}

// viaDocker is what Options.Docker falls back to: cmd/testenv sets it when it took the brokers from
// Docker, so that the tests that start brokers of their own do the same.
func viaDocker() bool { return os.Getenv("SAGAZ_TEST_DOCKER") == "1" }

// inDocker is where a broker's directory is in its container.
const inDocker = "/relay"

// container is one service of compose.yaml, as a project of its own.
type container struct {
	service string
	file    string
	project string
	env     []string
}

func newContainer(service, dir string, ports []int, env ...string) (*container, error) {
	c := &container{
		service: service,
		file:    filepath.Join(dir, "compose.yaml"),
		project: "sagaz-test-" + strings.ToLower(rand.Text()[:10]),
		env:     append(os.Environ(), append(env, "DIR="+dir)...),
	}
	for i, port := range ports {
		c.env = append(c.env, fmt.Sprintf("PORT_%d=%d", i+1, port))
	}
	if err := os.Chmod(dir, 0o755); err != nil { // RabbitMQ's container has a user of its own
		return nil, fmt.Errorf("open the broker's directory to its container: %w", err)
	}
	if err := os.WriteFile(c.file, composeYAML, 0o644); err != nil {
		return nil, fmt.Errorf("write compose file: %w", err)
	}
	return c, nil
}

func (c *container) compose(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"compose", "-f", c.file, "-p", c.project}, args...)...)
	cmd.Env = c.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("docker compose %s: %w\n%s", strings.Join(args, " "), err, lastLines(out, 10))
	}
	return string(out), nil
}

// start makes the container, or starts the one that was stopped.
func (c *container) start(ctx context.Context) error {
	_, err := c.compose(ctx, "up", "-d", c.service)
	return err
}

func (c *container) stop(ctx context.Context) error {
	_, err := c.compose(ctx, "stop", "-t", "30", c.service)
	return err
}

func (c *container) kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := c.compose(ctx, "ps", "-q", "--status", "running", c.service); err != nil || strings.TrimSpace(out) == "" {
		return err // it does not run
	}
	_, err := c.compose(ctx, "kill", c.service)
	return err
}

// remove ends the container and takes its data away.
func (c *container) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := c.compose(ctx, "down", "-v", "-t", "0")
	return err
}

func (c *container) logs() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, _ := c.compose(ctx, "logs", "--no-color", "--tail", "20", c.service)
	return out
}
