package stdout_test

import (
	"bytes"
	"testing"

	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/sinks/file"
	"github.com/sagaz-relay/relay/sinks/sinktest"
	"github.com/sagaz-relay/relay/sinks/stdout"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The contract is tested where the sink is, in sinks/file.
func TestNew(t *testing.T) {
	var out bytes.Buffer
	s := stdout.New("stdout", &out)
	recs := sinktest.Records("OrderCreated", "order-7", 0, 2)
	if err := s.Publish(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if want := file.AppendLine(file.AppendLine(nil, recs[0]), recs[1]); !bytes.Equal(out.Bytes(), want) || s.Name() != "stdout" {
		t.Errorf("%s wrote %q, want %q", s.Name(), out.Bytes(), want)
	}
}
