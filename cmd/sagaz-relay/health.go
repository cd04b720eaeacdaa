package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/term"
)

func newHealth(load func() (*settings, error)) *cobra.Command {
	var live bool
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the relay of this host whether it is ready",
		Long: `health asks the relay that runs on the same host, with the same settings, for /health/ready (or
/health/live), and prints the answer. Exit code 0: yes; 1: no, or nobody answers. It is for the
health checks of containers, whose image has no shell and no curl.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			path := "/health/ready"
			if live {
				path = "/health/live"
			}
			return askHealth(cmd.Context(), cmd.OutOrStdout(), s.httpAddr(), path, s.admin.CertFile != "")
		},
	}
	cmd.Flags().BoolVar(&live, "live", false, "ask whether the process turns over, whatever database and brokers do")
	return cmd
}

// askHealth prints what a relay answers that is bound to the address and speaks HTTPS, or not; an
// answer other than 200 is an error with the reasons.
func askHealth(ctx context.Context, out io.Writer, bind, path string, encrypted bool) error {
	if bind == "" {
		return configError{errors.New("METRICS_PORT=0: the relay serves no health")}
	}
	host, port, err := net.SplitHostPort(bind)
	if err != nil {
		return configError{fmt.Errorf("RELAY_HTTP_ADDR=%s: %w", bind, err)}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	scheme := "http"
	if encrypted {
		scheme = "https"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, port)+path, nil)
	if err != nil {
		return configError{fmt.Errorf("RELAY_HTTP_ADDR=%s: %w", bind, err)}
	}
	client := http.Client{Transport: &http.Transport{ // by no proxy
		DisableKeepAlives: true,
		// The certificate is for the names that others use, and nothing secret is sent or answered.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // for the reason above
	}}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the relay: %w", err)
	}
	defer res.Body.Close()
	var answer struct {
		Status   string
		Problems []string
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer); err != nil {
		return fmt.Errorf("ask the relay: %s, and the answer to %s cannot be read: %w", res.Status, path, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", answer.Status, strings.Join(answer.Problems, "; "))
	}
	_, err = fmt.Fprintln(out, term.Text(answer.Status))
	return err
}
