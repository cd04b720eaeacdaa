// Package webhook is the sink for HTTP receivers: one POST for each event, signed as Standard
// Webhooks has it (https://www.standardwebhooks.com).
//
// The body is the record's value, Content-Type its content type, and its headers are HTTP headers
// (header.go has what becomes of names and values that HTTP cannot carry). A record counts as
// acknowledged when the receiver has answered with a status from 200 to 299.
//
// One request is under way for each key, and RELAY_WEBHOOK_CONCURRENCY for all of them. Publish
// works through the keys of its batch side by side, and through the records of a key one after the
// other.
//
// What an answer means:
//
//	status                          the record
//	200 to 299                      is acknowledged
//	408, 425, 429, 500 to 599       has a transient error; Retry-After is obeyed
//	401, 407                        has a transient error: our credentials are wrong, not the record
//	1xx, 3xx, 403, 404, 405         is refused as unroutable: a person can change the address or the
//	                                receiver, so it is offered for RELAY_UNROUTABLE_PATIENCE
//	413, 414, 431                   is refused as too large
//	any other, such as 400 or 410   is refused as rejected
//	none                            has a transient error, and so have those of its key behind it
//
// A redirect is never followed: the receiver could send the event, its signature and our credentials
// anywhere. An error names the host that it points to, so that a person can change the address.
//
// # Retry-After
//
// After a transient answer with Retry-After no request goes to that URL before its time, at most
// retryAfterMost from now. Records for it fail at once, and the lane offers them again with its
// growing pauses, so that other sinks, and other URLs where the address has {topic}, do not wait.
//
// # Not obvious
//
//   - HTTP cannot take back a request. When no answer came in time, the receiver may still be at
//     work, and handle the event after the repeat, or behind the next one of its key. Publish
//     therefore lets what is under way finish for a moment (grace) when its context ends, and the
//     timeout should be longer than the receiver's slowest answer. The webhook-id of a repeat is the
//     same.
//   - The fence is asked where the transport reads the request's body. It does that on a connection
//     that is there, after every wait of its own, and a request without its body is no request.
//   - Requests go to the Transport and not through a Client. A Client follows redirects, and puts the
//     whole URL into its errors; the path of many webhooks is a secret.
//   - A batch whose records take longer than slice together is returned in part: the rest has
//     relay.ErrLater. Otherwise a slow receiver would look like a failing one, and what it has
//     acknowledged would be marked late.
package webhook
