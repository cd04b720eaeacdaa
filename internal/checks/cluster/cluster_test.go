//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// cluster is an API server of its own, and kubectl as its administrator.
type cluster struct {
	t      *testing.T
	config string
}

// start starts etcd and kube-apiserver, which are on the PATH, for one test.
func start(t *testing.T) *cluster {
	t.Helper()
	t.Parallel()
	dir := t.TempDir()
	ports, err := child.FreePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	etcd, server := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("https://127.0.0.1:%d", ports[2])
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	accounts := write("accounts.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	run(t, "server", "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", ports[1])) // etcd's module calls its program so
	run(t, "kube-apiserver", "--etcd-servers", etcd, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[2]), "--cert-dir", filepath.Join(dir, "certificates"),
		"--service-account-issuer=https://kubernetes", "--service-account-key-file", accounts, "--service-account-signing-key-file", accounts,
		"--service-cluster-ip-range=10.0.0.0/16", "--authorization-mode=AlwaysAllow", "--token-auth-file", write("tokens.csv", "secret,admin,admin,system:masters\n"),
		"--allow-privileged", "--disable-admission-plugins=ServiceAccount") // nobody makes their tokens here
	c := &cluster{t: t, config: write("config", `apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: `+server+`, insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: secret}}]
contexts: [{name: here, context: {cluster: here, user: admin}}]
current-context: here
`)}
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if out, err := c.try("kubectl get --raw /readyz"); err == nil {
			return c
		} else if time.Now().After(deadline) {
			t.Fatalf("the API server is not ready: %s", out)
		}
	}
}

// run starts a program that ends with the test.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v: make test-cluster brings it", err)
	}
	product.Start(t, name, exec.Command(name, args...))
}

// try runs a line of shell in the root of the repository.
func (c *cluster) try(line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", line)
	cmd.Dir, cmd.Env = product.Root(), append(os.Environ(), "KUBECONFIG="+c.config)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

func (c *cluster) sh(line string) string {
	c.t.Helper()
	out, err := c.try(line)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

// want runs a line and compares what it prints.
func (c *cluster) want(line, want string) {
	c.t.Helper()
	if got := c.sh(line); got != want {
		c.t.Errorf("%s: got %q, want %q", line, got, want)
	}
}

// unchanged runs a line again and fails if any object of ours is another version afterwards. What
// kubectl prints does not tell: it says "configured" of a patch that changes nothing.
func (c *cluster) unchanged(line string) {
	c.t.Helper()
	versions := `kubectl get deployment,statefulset,job,service,configmap,secret,hpa,pdb,serviceaccount,networkpolicy,namespace -A \
		-o jsonpath='{range .items[?(@.metadata.namespace!="kube-system")]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.resourceVersion}{"\n"}{end}'`
	before := c.sh(versions)
	c.sh(line)
	after := strings.Split(c.sh(versions), "\n")
	for _, was := range strings.Split(before, "\n") {
		if !slices.Contains(after, was) {
			c.t.Errorf("%s, again, changes %s", line, was)
		}
	}
}
