// Package awstest runs moto's server, which keeps queues and topics in memory and speaks the wire
// protocols of SQS and SNS, FIFO included: deduplication by id, order in a group, delivery of a
// topic's messages to queues.
//
// It is no AWS. It checks no signature, no permission and no limit of rates, it never fails an entry
// of a batch for a reason of its own, and one process holds all: what depends on those is tested
// with scripted answers (sinks/aws), or not at all.
package awstest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/peers"
)

// Server is a running server.
type Server struct {
	URL     string
	process *child.Process
}

// Start installs moto where it is missing, starts it, and returns when it answers.
func Start(ctx context.Context) (*Server, error) {
	python, err := peers.Moto(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	ports, err := child.FreePorts(1)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	cmd := exec.Command(python, "-m", "moto.server", "-H", "127.0.0.1", "-p", strconv.Itoa(ports[0]))
	// The settings of AWS's SDK are for its clients: with them botocore in the server fails.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(pair string) bool { return strings.HasPrefix(pair, "AWS_") })
	process, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	s := &Server{URL: "http://" + address, process: process}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for {
		answer, err := client.Get(s.URL + "/moto-api/data.json")
		if err == nil {
			_ = answer.Body.Close()
			return s, nil
		}
		select {
		case <-process.Done():
			return nil, fmt.Errorf("moto's server ended: %w", process.Err())
		case <-ctx.Done():
			_ = s.Close()
			return nil, fmt.Errorf("moto's server does not answer: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Close ends the server; what it holds is gone.
func (s *Server) Close() error { return s.process.Kill() }
