module github.com/sagaz-relay/relay/internal/checks

go 1.26.0
