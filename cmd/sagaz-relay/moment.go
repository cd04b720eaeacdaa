package main

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// parseMoment reads a flag that is a point in time: RFC 3339, a date (its start in UTC), or how
// long ago. An empty text is no time.
func parseMoment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	ago, err := parseDays(text)
	if err != nil || ago < 0 {
		return time.Time{}, fmt.Errorf("%s=%s: want 2026-11-23T07:30:00Z, 2026-11-23, or how long ago, such as 2h", flag, text)
	}
	return now.Add(-ago), nil
}

// parseDays reads a duration, which may be in days too.
func parseDays(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		d, err := time.ParseDuration(days + "h")
		return 24 * d, err
	}
	return time.ParseDuration(text)
}

// parseAge reads a duration above 0.
func parseAge(text string) (time.Duration, error) {
	age, err := parseDays(text)
	if err != nil || age <= 0 {
		return 0, errors.New("want a duration above 0, such as 90s, 2h or 7d")
	}
	return age, nil
}
