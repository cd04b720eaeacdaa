// Package docs checks what the documents tell people to type: shell blocks are parsed as a shell
// does, and every command in them is looked up where it comes from: sagaz-relay's in the binary,
// make's in the Makefile, paths and objects in the tree, SQL in a migrated database.
package docs
