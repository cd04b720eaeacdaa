package cdc

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay/sessions"
)

// What is wrong with the configuration is reported all at once, each thing once, and without the
// password.
func TestConfigErrors(t *testing.T) {
	const dsn = "postgresql://app:s3cret@db/shop"
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   []string // one of each in the error's lines
	}{
		{"no URL", func(c *Config) { c.DatabaseURL = "" }, []string{"DATABASE_URL: not set"}},
		{"@ in the password", func(c *Config) { c.DatabaseURL = "postgresql://app:top@s3cret@db/shop" }, []string{"%40"}},
		{"/ in the password", func(c *Config) { c.DatabaseURL = "postgresql://app:s3cret/more@db/shop" }, []string{"DATABASE_URL"}},
		{"% in the password", func(c *Config) { c.DatabaseURL = "postgresql://app:s3cret%zz@db/shop" }, []string{"DATABASE_URL"}},
		{"space in the password", func(c *Config) { c.DatabaseURL = "host=db password=s3cret s3cret more" }, []string{"DATABASE_URL"}},
		{"no port", func(c *Config) { c.DatabaseURL = "postgresql://app:s3cret@db:port/shop" }, []string{"DATABASE_URL"}},
		{"rare reports", func(c *Config) { c.StatusInterval = 4 * time.Second }, []string{"RELAY_STATUS_INTERVAL"}},
		{
			"all", func(c *Config) { *c = Config{StatusInterval: -1} },
			[]string{"DATABASE_URL", "RELAY_WAL_SENDER_TIMEOUT=0s", "RELAY_STATUS_INTERVAL=-1ns", "RELAY_MAX_EVENT_BYTES=0"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(dsn)
			c.change(&cfg)
			_, err := New(cfg, hclog.NewNullLogger())
			if err == nil {
				t.Fatal("it is taken")
			}
			if lines := strings.Split(err.Error(), "\n"); len(lines) != len(c.want) {
				t.Errorf("got %d problems, want %d: %v", len(lines), len(c.want), err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the password is in %q", err)
			}
		})
	}
	if _, err := New(config(dsn), hclog.NewNullLogger()); err != nil {
		t.Errorf("the default: %v", err)
	}
}

func TestMajorVersion(t *testing.T) {
	for version, want := range map[string]int{
		"17.6 (Debian 17.6-1.pgdg120+1)": 17, "18beta1": 18, "14.24": 14, "16": 16, "9.6.24": 9, "": 0, "odd": 0,
	} {
		if got := sessions.MajorVersion(version); got != want {
			t.Errorf("%q: got %d, want %d", version, got, want)
		}
	}
}
