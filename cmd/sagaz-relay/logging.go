package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/term"
)

// newLogger returns a logger that writes one JSON object a line with the keys of the Python
// library: timestamp, level (in Python's names), logger, message, then the pairs.
func newLogger(w io.Writer, level hclog.Level) hclog.Logger {
	// hclog's own JSON keys are fixed (@level, @message), so its output is discarded and a sink
	// writes ours.
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: level})
	log.RegisterSink(&jsonLines{level: level, out: newPatientWriter(w, logPatience, func(lines int64) []byte {
		return jsonLine("log", hclog.Warn, "nobody read the log, lines were dropped", "lines", lines)
	})})
	return log
}

// parseLevel takes Python's names and hclog's.
func parseLevel(name string) (hclog.Level, error) {
	switch strings.ToUpper(name) {
	case "TRACE":
		return hclog.Trace, nil
	case "DEBUG":
		return hclog.Debug, nil
	case "INFO":
		return hclog.Info, nil
	case "WARNING", "WARN":
		return hclog.Warn, nil
	case "ERROR", "CRITICAL":
		return hclog.Error, nil
	}
	return hclog.NoLevel, fmt.Errorf("LOG_LEVEL=%s: want DEBUG, INFO, WARNING or ERROR", name)
}

func pythonLevel(level hclog.Level) string {
	switch level {
	case hclog.Trace, hclog.Debug:
		return "DEBUG"
	case hclog.Warn:
		return "WARNING"
	case hclog.Error:
		return "ERROR"
	default:
		return "INFO"
	}
}

type jsonLines struct {
	level hclog.Level
	out   *patientWriter
}

// Accept implements hclog.SinkAdapter.
func (j *jsonLines) Accept(name string, level hclog.Level, msg string, args ...any) {
	if level < j.level {
		return
	}
	j.out.write(jsonLine(name, level, msg, args...))
}

func jsonLine(name string, level hclog.Level, msg string, args ...any) []byte {
	line := make([]byte, 0, 256)
	line = append(line, `{"timestamp":"`...)
	line = time.Now().UTC().AppendFormat(line, "2006-01-02T15:04:05.000000Z07:00")
	line = append(line, `","level":"`...)
	line = append(line, pythonLevel(level)...)
	line = append(line, `","logger":`...)
	line = appendJSON(line, name)
	line = append(line, `,"message":`...)
	line = appendJSON(line, msg)
	for i := 0; i+1 < len(args); i += 2 {
		key, ok := args[i].(string)
		if !ok {
			key = fmt.Sprint(args[i])
		}
		line = append(line, ',')
		line = appendJSON(line, key)
		line = append(line, ':')
		line = appendJSON(line, plain(args[i+1]))
	}
	line = append(line, '}', '\n')
	return term.JSON([]byte(redacted.Text(string(line))))
}

// plain keeps numbers, booleans and strings, and renders everything else as its own text.
func plain(value any) any {
	switch v := value.(type) {
	case string, bool, int, int32, int64, uint32, uint64, float64, []string:
		return v
	case error:
		return v.Error()
	case fmt.Stringer:
		return v.String()
	default:
		return fmt.Sprint(v)
	}
}

func appendJSON(line []byte, value any) []byte {
	text, err := json.Marshal(value)
	if err != nil { // NaN
		text, _ = json.Marshal(fmt.Sprint(value))
	}
	return append(line, text...)
}
