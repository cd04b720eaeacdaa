package webhook

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
)

// signer makes one signature of a text.
type signer struct {
	version string
	sign    func(text []byte) []byte
}

const (
	hmacPrefix    = "whsec_"
	ed25519Prefix = "whsk_"
	// The specification of Standard Webhooks wants this many bytes for HMAC.
	leastSecret, mostSecret = 24, 64
)

// newSigners reads secrets. An error names the number of the secret and the rule, and nothing of
// the secret.
func newSigners(secrets []string) ([]signer, error) {
	signers := make([]signer, 0, len(secrets))
	for i, secret := range secrets {
		bad := func(rule string) ([]signer, error) {
			return nil, fmt.Errorf("RELAY_WEBHOOK_SECRETS: number %d: %s (make one with: echo whsec_$(openssl rand -base64 32))", i+1, rule)
		}
		if text, ok := strings.CutPrefix(secret, ed25519Prefix); ok {
			key, err := base64.StdEncoding.DecodeString(text)
			switch {
			case err == nil && len(key) == ed25519.SeedSize:
				key = ed25519.NewKeyFromSeed(key)
			case err != nil || len(key) != ed25519.PrivateKeySize:
				return bad("want whsk_ and the base64 text of an ed25519 private key, which is 32 bytes, or 64 with its public key")
			}
			private := ed25519.PrivateKey(key)
			signers = append(signers, signer{"v1a", func(text []byte) []byte { return ed25519.Sign(private, text) }})
			continue
		}
		text, ok := strings.CutPrefix(secret, hmacPrefix)
		if !ok {
			return bad("want it to begin with whsec_, or with whsk_ for ed25519")
		}
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(key) < leastSecret || len(key) > mostSecret {
			return bad("want whsec_ and the base64 text of 24 to 64 bytes")
		}
		signers = append(signers, signer{"v1", func(text []byte) []byte {
			h := hmac.New(sha256.New, key)
			h.Write(text) // never fails
			return h.Sum(nil)
		}})
	}
	return signers, nil
}

// signatures is the header webhook-signature: one of each signer, over id, time and body.
func signatures(signers []signer, id string, unix int64, body []byte) string {
	text := make([]byte, 0, len(id)+len(body)+24)
	text = append(append(text, id...), '.')
	text = append(strconv.AppendInt(text, unix, 10), '.')
	text = append(text, body...)
	list := make([]string, len(signers))
	for i, s := range signers {
		list[i] = s.version + "," + base64.StdEncoding.EncodeToString(s.sign(text))
	}
	return strings.Join(list, " ")
}
