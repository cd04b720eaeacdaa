package aws

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/aws/smithy-go"

	"github.com/sagaz-relay/relay/relay"
)

// trouble sorts the errors of one kind, and knows how its settings are called.
type trouble struct {
	system    string // for traces: aws_sqs
	prefix    string // RELAY_SQS
	template  string // the name of queue or topic
	templated bool
	said      func(string) string
}

// say is a text in which settings begin with an underscore.
func (t *trouble) say(text string) string {
	for _, setting := range []string{"_QUEUE", "_TIMEOUT", "_REGION", "_ENDPOINT"} {
		name := t.prefix + setting
		if setting == "_QUEUE" && t.prefix == "RELAY_SNS" {
			name = "RELAY_SNS_TOPIC_ARN"
		}
		text = strings.ReplaceAll(text, " "+setting, " "+name)
		if text == setting {
			text = name
		}
	}
	return t.said(text)
}

// Codes of AWS's errors, without what is in front of the last dot or number sign.
var (
	unknownCodes = []string{"QueueDoesNotExist", "NonExistentQueue", "NotFound", "NotFoundException", "InvalidAddress"}
	deniedCodes  = []string{"AccessDenied", "AccessDeniedException", "AuthorizationError", "AuthorizationErrorException", "KmsAccessDenied", "KMSAccessDenied", "KMSAccessDeniedException"}
	loginCodes   = []string{
		"InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "InvalidSignatureException", "ExpiredToken", "ExpiredTokenException", "MissingAuthenticationToken",
		"MissingAuthenticationTokenException", "IncompleteSignature", "IncompleteSignatureException", "OptInRequired", "RequestExpired", "InvalidAccessKeyId", "InvalidSecurity",
	}
	// What one message can be at fault for though the whole request fails.
	onesCodes = []string{
		"BatchRequestTooLong", "BatchRequestTooLongException", "InvalidMessageContents", "InvalidParameterValue", "InvalidParameter", "InvalidParameterException", "InvalidParameterValueException",
		"InvalidAttributeValue", "ValidationError", "ValidationException", "ParameterValueInvalid",
	}
)

// codeOf is the short form of an error's code: AWS.SimpleQueueService.NonExistentQueue is
// NonExistentQueue.
func codeOf(code string) string {
	if i := strings.LastIndexAny(code, ".#"); i >= 0 {
		code = code[i+1:]
	}
	return code
}

func apiCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return codeOf(api.ErrorCode())
	}
	return ""
}

// mayBeOnes reports whether one message of a request may be why it failed.
func mayBeOnes(err error) bool { return slices.Contains(onesCodes, apiCode(err)) }

// outcome is a record's for an error of a whole request. AWS's own texts are left out but for their
// codes: they repeat values that they were sent.
func (t *trouble) outcome(place string, err error) error {
	code := apiCode(err)
	what := fmt.Errorf("send to %s: %s", place, code)
	switch {
	case slices.Contains(unknownCodes, code):
		return relay.Refuse(relay.ReasonUnknownTopic, fmt.Errorf("%s does not exist (%s)", place, code))
	case slices.Contains(deniedCodes, code):
		return relay.Refuse(relay.ReasonUnroutable, fmt.Errorf("%w: the relay's role may not send to it", what))
	case slices.Contains(loginCodes, code):
		return &relay.SetupError{Problem: what.Error(), Fix: "check the credentials that AWS's SDK finds here (AWS_ACCESS_KEY_ID, AWS_PROFILE, the pod's or machine's role), and the clock"}
	case slices.Contains(onesCodes, code):
		return relay.Refuse(relay.ReasonRejected, what)
	case code != "":
		return what
	}
	return t.connectError(place, err)
}

// connectError is the error of a request without an answer of AWS's.
func (t *trouble) connectError(place string, err error) error {
	for _, own := range []error{relay.ErrFence, ErrClosed} {
		if errors.Is(err, own) {
			return own
		}
	}
	what := "send to " + place
	var unresolved *net.DNSError
	var connection *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &unresolved):
		return &relay.SetupError{Problem: what, Err: unresolved, Fix: t.say("check _REGION and _ENDPOINT, and the name server")}
	case errors.As(err, &connection):
		return &relay.SetupError{Problem: what, Err: connection, Fix: t.say("check _ENDPOINT, and that no firewall or network policy is in between (port 443)")}
	case strings.Contains(err.Error(), "failed to refresh cached credentials"), strings.Contains(err.Error(), "get credentials"), strings.Contains(err.Error(), "get identity"):
		// The SDK has no type for it (aws/credential_cache.go). Its text has addresses, no secrets.
		return &relay.SetupError{Problem: what + ": no credentials", Fix: "give AWS's SDK credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the pod or machine"}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// entryOutcome is a record's whose entry has failed within a request that has not.
func (t *trouble) entryOutcome(place, code string, senderFault bool) error {
	code = codeOf(code)
	what := fmt.Errorf("send to %s: %s", place, code)
	switch {
	case slices.Contains(unknownCodes, code):
		return relay.Refuse(relay.ReasonUnknownTopic, fmt.Errorf("%s does not exist (%s)", place, code))
	case slices.Contains(deniedCodes, code):
		return relay.Refuse(relay.ReasonUnroutable, fmt.Errorf("%w: the relay's role may not send to it", what))
	case senderFault && !strings.Contains(code, "Throttl"):
		return relay.Refuse(relay.ReasonRejected, what)
	default:
		return what
	}
}
