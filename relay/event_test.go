package relay

import (
	"testing"
	"time"
)

func TestLSN(t *testing.T) {
	for _, tt := range []struct {
		lsn  LSN
		text string
	}{
		{0, "0/0"},
		{0x16_B374D848, "16/B374D848"},
		{0x1_00000000, "1/0"},
		{0xFFFFFFFF_FFFFFFFF, "FFFFFFFF/FFFFFFFF"},
	} {
		if got := tt.lsn.String(); got != tt.text {
			t.Errorf("LSN %d: got %s, want %s", uint64(tt.lsn), got, tt.text)
		}
		if got, err := ParseLSN(tt.text); err != nil || got != tt.lsn {
			t.Errorf("parse %s: got %s, %v", tt.text, got, err)
		}
	}
	for _, bad := range []string{"", "16", "16/", "/1", "16-1", "x/y", "1FFFFFFFF/0"} {
		if got, err := ParseLSN(bad); err == nil {
			t.Errorf("parse %q: got %s, want an error", bad, got)
		}
	}
}

func TestUUID(t *testing.T) {
	const lower, upper = "0198f3a2-5b7c-7d10-8e2f-a1b2c3d4e5f6", "0198F3A2-5B7C-7D10-8E2F-A1B2C3D4E5F6"
	for _, s := range []string{lower, upper} {
		u, err := ParseUUID(s)
		if err != nil || u.String() != lower {
			t.Errorf("%s: got %s, %v", s, u, err)
		}
	}
	for _, bad := range []string{"", lower[1:], lower + "0", "0198f3a25b7c7d108e2fa1b2c3d4e5f6", lower[:35] + "g", "0198f3a2-5b7c-7d10-8e2f_a1b2c3d4e5f6"} {
		if u, err := ParseUUID(bad); err == nil {
			t.Errorf("parse %q: got %s, want an error", bad, u)
		}
	}
}

func TestTimestamp(t *testing.T) {
	for _, tt := range []struct {
		name string
		ts   Timestamp
		want string
	}{
		{"Epoch", 0, "2000-01-01T00:00:00+00:00"},
		{"Micros", 849_000_000_123_456, "2026-11-26T09:20:00.123456+00:00"},
		{"MicrosWithZeros", 100_000, "2000-01-01T00:00:00.100000+00:00"},
		{"BeforeTheEpoch", -1, "1999-12-31T23:59:59.999999+00:00"},
		{"Year1", -730_119 * 86_400_000_000, "0001-01-01T00:00:00+00:00"},
		// What Python's datetime can hold ends there: datetime.max and datetime.min.
		{"Infinity", Infinity, "9999-12-31T23:59:59.999999+00:00"},
		{"NegativeInfinity", NegativeInfinity, "0001-01-01T00:00:00+00:00"},
		{"Year10000", 2_921_940 * 86_400_000_000, "9999-12-31T23:59:59.999999+00:00"},
		{"BeforeChrist", -730_120 * 86_400_000_000, "0001-01-01T00:00:00+00:00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want, err := time.Parse(time.RFC3339Nano, tt.want)
			if got := tt.ts.Time(); err != nil || got != want.UTC() {
				t.Errorf("got %s, want %s, %v", got, tt.want, err)
			}
		})
	}
	at := time.Date(2026, 11, 23, 8, 46, 59, 123456789, time.FixedZone("", 3600))
	if got, want := TimestampOf(at).Time(), time.Date(2026, 11, 23, 7, 46, 59, 123456000, time.UTC); !got.Equal(want) || got.Location() != time.UTC {
		t.Errorf("there and back: got %s, want %s", got, want)
	}
}
