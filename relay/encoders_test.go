package relay

// Encoders are those of each envelope, by its name, for the tests inside of this package: it cannot import relay/encode, which
// imports it. The tests outside of it fill them in.
var Encoders = make(map[string]Encoder)
