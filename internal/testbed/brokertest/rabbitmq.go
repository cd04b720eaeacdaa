package brokertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/debian"
)

// RabbitMQOptions are where a RabbitMQ node runs. The zero value will do.
type RabbitMQOptions struct {
	// configuration, data and logs; default a new temporary directory, removed by Close
	Dir string
	// run it in Docker; default SAGAZ_TEST_DOCKER=1, or else as a process of this machine
	Docker bool
	Log    io.Writer // progress lines for a person; default none
	// Join makes it a node of this one's cluster. Only processes of this machine can.
	Join *RabbitMQServer
}

// RabbitMQServer is a RabbitMQ node. The exported fields do not change over a restart.
type RabbitMQServer struct {
	URL    string // amqp://, user and password included
	TLSURL string // amqps://; a client certificate is checked when shown, and not asked for

	CAFile     string // signed the node's certificate
	ClientCert string
	ClientKey  string
	User       string
	Password   string

	Node string // its name in the cluster; empty in Docker

	node
	dir     string
	ownDir  bool
	join    *RabbitMQServer
	scripts string   // where rabbitmq-server and rabbitmqctl are
	env     []string // of the node, of epmd and of rabbitmqctl
	cookie  string
	epmd    *child.Process // next to a process; of a cluster, its nodes' one
}

// StartRabbitMQ starts a private node from the installed rabbitmq-server and waits until it takes
// connections.
//
// The node shares nothing with one that the system may run. It has its own name, cookie, ports,
// data and even its own epmd (Erlang's port mapper, which otherwise stays behind as a daemon).
func StartRabbitMQ(ctx context.Context, opts RabbitMQOptions) (*RabbitMQServer, error) {
	r := &RabbitMQServer{User: "relay", Password: "relay-secret", dir: opts.Dir, join: opts.Join}
	docker := (opts.Docker || viaDocker()) && opts.Join == nil
	var err error
	if !docker {
		if r.scripts, err = rabbitScripts(); err != nil {
			return nil, err
		}
	}
	if r.dir == "" {
		if r.dir, err = os.MkdirTemp("", "sagaz-rabbitmq-"); err != nil {
			return nil, fmt.Errorf("create directory for rabbitmq: %w", err)
		}
		r.ownDir = true
	}
	if r.dir, err = filepath.Abs(r.dir); err != nil {
		return nil, fmt.Errorf("find directory for rabbitmq: %w", err)
	}
	if docker {
		err = r.configureContainer()
	} else {
		err = r.configureProcess()
	}
	if err == nil {
		err = r.Start(ctx)
	}
	if err == nil && r.join != nil {
		err = r.joinCluster(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// joinCluster makes the node, which is new, one of the cluster. They share cookie and epmd.
func (r *RabbitMQServer) joinCluster(ctx context.Context) error {
	for _, args := range [][]string{{"stop_app"}, {"join_cluster", r.join.Node}, {"start_app"}} {
		if _, err := r.Ctl(ctx, args...); err != nil {
			return err
		}
	}
	return ready(ctx, r.process, "rabbitmq", r.logs, r.Ping)
}

// rabbitScripts finds the directory of RabbitMQ's own scripts. Those that Debian puts into
// /usr/sbin are wrappers that change to the user rabbitmq, which would leave an ordinary user
// outside.
func rabbitScripts() (string, error) {
	places := []string{"/usr/lib/rabbitmq/bin"}
	if path, err := exec.LookPath("rabbitmq-server"); err == nil {
		places = append(places, filepath.Dir(path))
	}
	for _, dir := range append(places, "/opt/homebrew/sbin", "/usr/local/sbin") {
		if _, err := exec.LookPath(filepath.Join(dir, "rabbitmq-server")); err == nil {
			return dir, nil
		}
	}
	return "", debian.Missing("rabbitmq-server", rabbitPackage)
}

// configure picks ports, makes certificates and writes rabbitmq.conf. dir is r.dir under the node's
// name for it, host what it listens on. Its clients find it at 127.0.0.1 in any case.
func (r *RabbitMQServer) configure(dir, host string) (ports []int, err error) {
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return nil, fmt.Errorf("create directory for rabbitmq: %w", err)
	}
	if ports, err = child.FreePorts(2); err != nil {
		return nil, err
	}
	r.URL = fmt.Sprintf("amqp://%s:%s@127.0.0.1:%d/", r.User, r.Password, ports[0])
	r.TLSURL = fmt.Sprintf("amqps://%s:%s@127.0.0.1:%d/", r.User, r.Password, ports[1])

	certs, err := NewCerts(r.in("certs"))
	if err != nil {
		return nil, err
	}
	r.CAFile, r.ClientCert, r.ClientKey = certs.CAFile, certs.ClientCert, certs.ClientKey

	conf := strings.Join([]string{
		fmt.Sprintf("listeners.tcp.1 = %s:%d", host, ports[0]),
		fmt.Sprintf("listeners.ssl.1 = %s:%d", host, ports[1]),
		"ssl_options.cacertfile = " + filepath.Join(dir, "certs", "ca.pem"),
		"ssl_options.certfile = " + filepath.Join(dir, "certs", "server.pem"),
		"ssl_options.keyfile = " + filepath.Join(dir, "certs", "server.key"),
		"ssl_options.verify = verify_peer",
		"ssl_options.fail_if_no_peer_cert = false",
		"default_user = " + r.User,
		"default_pass = " + r.Password,
		// the client certificate is User's
		"auth_mechanisms.1 = PLAIN",
		"auth_mechanisms.2 = AMQPLAIN",
		"auth_mechanisms.3 = EXTERNAL",
		"ssl_cert_login_from = common_name",
		"",
	}, "\n")
	return ports, r.write("rabbitmq.conf", conf, 0o644)
}

func (r *RabbitMQServer) configureContainer() error {
	ports, err := r.configure(inDocker, "0.0.0.0")
	if err != nil {
		return err
	}
	r.container, err = newContainer("rabbitmq", r.dir, ports)
	return err
}

func (r *RabbitMQServer) configureProcess() error {
	if _, err := r.configure(r.dir, "127.0.0.1"); err != nil {
		return err
	}
	for _, dir := range []string{"data", "log", "config"} {
		if err := os.MkdirAll(r.in(dir), 0o755); err != nil {
			return fmt.Errorf("create directory for rabbitmq: %w", err)
		}
	}
	ports, err := child.FreePorts(3)
	if err != nil {
		return err
	}
	epmdPort, distPort, ctlPort := strconv.Itoa(ports[0]), ports[1], ports[2]
	cookie := rand.Text()
	if r.join != nil {
		if r.join.epmd == nil {
			return errors.New("the node to join is no process of this machine")
		}
		r.epmd, epmdPort, cookie = r.join.epmd, r.join.epmdPort(), r.join.cookie
	}
	r.cookie, r.Node = cookie, "sagaz-"+strings.ToLower(rand.Text()[:10])+"@localhost"
	if err := errors.Join(
		r.write("enabled_plugins", "[rabbitmq_auth_mechanism_ssl].\n", 0o644),
		r.write(".erlang.cookie", cookie, 0o400), // Erlang refuses one that others can read
	); err != nil {
		return err
	}

	const loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
	r.env = []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"HOME=" + r.dir, // the cookie is there
		"LANG=C.UTF-8",
		"ERL_EPMD_PORT=" + epmdPort,
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_NODENAME=" + r.Node,
		"RABBITMQ_CONF_ENV_FILE=" + r.in("none"), // not the one in /etc
		"RABBITMQ_CONFIG_FILE=" + r.in("rabbitmq.conf"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + r.in("none"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + r.in("enabled_plugins"),
		"RABBITMQ_GENERATED_CONFIG_DIR=" + r.in("config"),
		"RABBITMQ_SCHEMA_DIR=" + r.in("config"),
		"RABBITMQ_MNESIA_BASE=" + r.in("data"),
		"RABBITMQ_LOG_BASE=" + r.in("log"),
		"RABBITMQ_LOGS=" + r.logFile(),
		"RABBITMQ_PID_FILE=" + r.in("pid"),
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(distPort),
		// "Allow input" makes the script become the Erlang VM instead of waiting for it as a
		// parent, so that our signals reach the VM; it needs no input for that.
		"RABBITMQ_ALLOW_INPUT=1",
		"RABBITMQ_SERVER_START_ARGS=-noinput",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=" + loopback,
		"RABBITMQ_CTL_ERL_ARGS=" + loopback,
		"RABBITMQ_CTL_DIST_PORT_MIN=" + strconv.Itoa(ctlPort),
		"RABBITMQ_CTL_DIST_PORT_MAX=" + strconv.Itoa(ctlPort+20),
	}
	return nil
}

func (r *RabbitMQServer) write(name, content string, mode os.FileMode) error {
	if err := os.WriteFile(r.in(name), []byte(content), mode); err != nil {
		return fmt.Errorf("write configuration for rabbitmq: %w", err)
	}
	return nil
}

func (r *RabbitMQServer) in(name string) string { return filepath.Join(r.dir, name) }

func (r *RabbitMQServer) logFile() string { return r.in("log/rabbitmq.log") }

// Start starts the node after Stop or Kill, on the same data and ports, and waits until it takes
// connections.
func (r *RabbitMQServer) Start(ctx context.Context) error {
	if r.container != nil {
		if err := r.container.start(ctx); err != nil {
			return err
		}
		return ready(ctx, nil, "rabbitmq", r.logs, r.Ping)
	}
	out, err := os.OpenFile(r.in("rabbitmq.out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open rabbitmq's output file: %w", err)
	}
	defer out.Close() // the children have their own
	start := func(name string, args ...string) (*child.Process, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = r.dir, r.env, out, out
		return child.Start(cmd, syscall.SIGKILL)
	}
	if r.epmd == nil || !r.epmd.Running() {
		// Before the node, which would start one that detaches itself from us.
		if r.epmd, err = start(r.epmdPath()); err != nil {
			return err
		}
		if err := ready(ctx, r.epmd, "epmd", r.logs, r.epmdListens); err != nil {
			return err
		}
	}
	if r.process, err = start(filepath.Join(r.scripts, "rabbitmq-server")); err != nil {
		return err
	}
	return ready(ctx, r.process, "rabbitmq", r.logs, r.Ping)
}

// Ping opens a connection with user and password, and closes it.
func (r *RabbitMQServer) Ping(context.Context) error {
	conn, err := amqp.DialConfig(r.URL, amqp.Config{Dial: amqp.DefaultDial(5 * time.Second)})
	if err != nil {
		return fmt.Errorf("connect to rabbitmq: %w", err)
	}
	return conn.Close()
}

func (r *RabbitMQServer) epmdPath() string {
	if path, err := exec.LookPath("epmd"); err == nil {
		return path
	}
	return "/usr/lib/erlang/bin/epmd"
}

func (r *RabbitMQServer) epmdListens(context.Context) error {
	conn, err := net.DialTimeout("tcp", "127.0.0.1:"+r.epmdPort(), time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (r *RabbitMQServer) epmdPort() string {
	for _, kv := range r.env {
		if port, ok := strings.CutPrefix(kv, "ERL_EPMD_PORT="); ok {
			return port
		}
	}
	return ""
}

// Stop asks the node to shut down and waits for it. When ctx ends first, the node is killed.
func (r *RabbitMQServer) Stop(ctx context.Context) error { return r.withoutEPMD(r.node.Stop(ctx)) }

// withoutEPMD ends epmd, too.
func (r *RabbitMQServer) withoutEPMD(err error) error {
	if r.epmd == nil {
		return err
	}
	return errors.Join(err, r.epmd.Kill())
}

// Close kills the node if it still runs, and removes its directory unless the caller chose that.
func (r *RabbitMQServer) Close() error {
	err := r.withoutEPMD(r.remove())
	if r.ownDir {
		err = errors.Join(err, os.RemoveAll(r.dir))
	}
	return err
}

// Ctl runs rabbitmqctl on the node and returns what it printed.
func (r *RabbitMQServer) Ctl(ctx context.Context, args ...string) (string, error) {
	if r.container != nil {
		return r.container.compose(ctx, append([]string{"exec", "-T", "rabbitmq", "rabbitmqctl"}, args...)...)
	}
	if r.scripts == "" {
		return "", errors.New("rabbitmqctl: this broker was not started by brokertest.StartRabbitMQ in this process")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(r.scripts, "rabbitmqctl"), args...)
	cmd.Dir, cmd.Env = r.dir, r.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("rabbitmqctl %s: %w\n%s", strings.Join(args, " "), err, lastLines(out, 10))
	}
	return string(out), nil
}

// SetMemoryAlarm raises or clears the node's memory alarm. While it is on, connections that publish
// are blocked.
func (r *RabbitMQServer) SetMemoryAlarm(ctx context.Context, on bool) error {
	limit := "0.4"
	if on {
		limit = "0"
	}
	_, err := r.Ctl(ctx, "set_vm_memory_high_watermark", limit)
	return err
}

func (r *RabbitMQServer) logs() string {
	if r.container != nil {
		return r.container.logs()
	}
	return tail(r.in("rabbitmq.out"), 20) + tail(r.logFile(), 20)
}
