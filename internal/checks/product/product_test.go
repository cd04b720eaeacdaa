package product

import "testing"

func TestSettings(t *testing.T) {
	known := Settings(t)
	if s := known["DATABASE_URL"]; !s.Secret {
		t.Errorf("DATABASE_URL: got %+v, want a secret", s)
	}
	if s := known["METRICS_PORT"]; s.Default != "8000" {
		t.Errorf("METRICS_PORT: got %+v, want 8000 by default", s)
	}
	if _, ok := known["BROKER_URL"]; !ok {
		t.Error("BROKER_URL is not known, want it as a fallback")
	}
}
