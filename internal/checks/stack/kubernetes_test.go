//go:build stack

package stack

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// cluster is an API server that knows pods and nothing else. It answers lists, and watches in which nothing happens.
type cluster struct {
	*httptest.Server
	pods []corev1.Pod

	mu     sync.Mutex // guards denied
	denied []string   // requests that the roles of monitoring/rbac.yaml do not allow
}

var podsOf = regexp.MustCompile(`^/api/v1/namespaces/([^/]+)/pods$`)

func newCluster(t *testing.T, pods ...corev1.Pod) *cluster {
	t.Helper()
	c := &cluster{pods: pods}
	allowed := readers(t)
	stop := make(chan struct{})
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		m := podsOf.FindStringSubmatch(r.URL.Path)
		verb := "list"
		if query.Get("watch") != "" {
			verb = "watch"
		}
		w.Header().Set("Content-Type", "application/json")
		switch {
		case m == nil || r.Method != http.MethodGet || !slices.Contains(allowed[m[1]], verb):
			c.mu.Lock()
			c.denied = append(c.denied, verb+" "+r.URL.Path)
			c.mu.Unlock()
			status(w, http.StatusForbidden, metav1.StatusReasonForbidden)
		case query.Get("sendInitialEvents") == "true": // a newer way to list, which servers need not have
			status(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
		case verb == "watch":
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
			case <-stop:
			}
		default:
			list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
			for _, p := range c.pods {
				if p.Namespace == m[1] {
					list.Items = append(list.Items, p)
				}
			}
			_ = json.NewEncoder(w).Encode(list)
		}
	}))
	t.Cleanup(func() { close(stop); c.Close() })
	return c
}

func status(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: reason, Code: int32(code), Message: string(reason),
	})
}

// refused are the requests that the roles do not allow.
func (c *cluster) refused() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.denied)
}

// readers are the verbs that monitoring/rbac.yaml allows Prometheus for pods, by namespace.
func readers(t *testing.T) map[string][]string {
	t.Helper()
	allowed, roles := make(map[string][]string), make(map[string][]string)
	for range 2 { // a binding may come before its role
		for _, doc := range strings.Split(string(product.Read(t, "monitoring/rbac.yaml")), "\n---\n") {
			var role rbacv1.Role
			if err := yaml.Unmarshal([]byte(doc), &role); err == nil && role.Kind == "Role" {
				for _, rule := range role.Rules {
					if slices.Contains(rule.Resources, "pods") {
						roles[role.Namespace+"/"+role.Name] = rule.Verbs
					}
				}
			}
			var binding rbacv1.RoleBinding
			if err := yaml.Unmarshal([]byte(doc), &binding); err == nil && binding.Kind == "RoleBinding" {
				if slices.ContainsFunc(binding.Subjects, func(s rbacv1.Subject) bool { return s.Name == "prometheus" }) {
					allowed[binding.Namespace] = roles[binding.Namespace+"/"+binding.RoleRef.Name]
				}
			}
		}
	}
	if len(allowed) != 2 {
		t.Fatalf("rbac.yaml lets Prometheus look at pods of %v", allowed)
	}
	return allowed
}

// pod makes a running pod of k8s/outbox-worker.yaml's template that listens at an address of this machine. Only its port is another.
func pod(t *testing.T, namespace, name, address string) corev1.Pod {
	t.Helper()
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(product.Read(t, "k8s/outbox-worker.yaml")), "\n---\n") {
		var d appsv1.Deployment
		if err := yaml.Unmarshal([]byte(doc), &d); err != nil || d.Kind != "Deployment" {
			continue
		}
		p := corev1.Pod{ObjectMeta: d.Spec.Template.ObjectMeta, Spec: d.Spec.Template.Spec, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: host}}
		p.Namespace, p.Name, p.UID = namespace, name, types.UID(name)
		declared := p.Spec.Containers[0].Ports[0].ContainerPort
		if p.Annotations["prometheus.io/port"] != strconv.Itoa(int(declared)) {
			t.Fatalf("the pod says that it is scraped at %s, and listens at %d", p.Annotations["prometheus.io/port"], declared)
		}
		p.Annotations["prometheus.io/port"], p.Spec.Containers[0].Ports[0].ContainerPort = text, int32(port)
		// A second port, which must not become a target.
		p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{Name: "other", ContainerPort: int32(port) + 1})
		return p
	}
	t.Fatal("no Deployment in k8s/outbox-worker.yaml")
	return corev1.Pod{}
}
