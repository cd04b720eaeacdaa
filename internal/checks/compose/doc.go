// Package compose checks docker-compose.yml without Docker: what the file says is loaded as Compose
// loads it, compared with what the binary knows, and then played: the commands and variables of the
// relay's services, with the services' names mapped to real servers that are set up from the same
// file.
package compose
