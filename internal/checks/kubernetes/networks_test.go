package kubernetes

import (
	"net/netip"
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// reaches says whether pods with these labels may talk to a peer: a pod of a namespace, or an
// address.
func reaches(t *testing.T, all []object, from labels.Set, namespace, pod labels.Set, address string, port int32) bool {
	t.Helper()
	matches := func(s *metav1.LabelSelector, set labels.Set) bool {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		return selector.Matches(set)
	}
	denied := false
	for _, x := range each[*networkingv1.NetworkPolicy](all) {
		if x.Namespace != "sagaz" || !slices.Contains(x.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) || !matches(&x.Spec.PodSelector, from) {
			continue
		}
		denied = true
		for _, rule := range x.Spec.Egress {
			open := len(rule.Ports) == 0
			for _, p := range rule.Ports {
				last := p.Port.IntVal
				if p.EndPort != nil {
					last = *p.EndPort
				}
				open = open || port >= p.Port.IntVal && port <= last
			}
			there := len(rule.To) == 0
			for _, peer := range rule.To {
				switch {
				case peer.IPBlock != nil:
					in := func(cidr string) bool { return netip.MustParsePrefix(cidr).Contains(netip.MustParseAddr(address)) }
					there = there || address != "" && in(peer.IPBlock.CIDR) && !slices.ContainsFunc(peer.IPBlock.Except, in)
				case address != "":
				case peer.NamespaceSelector == nil:
					there = there || namespace["kubernetes.io/metadata.name"] == "sagaz" && matches(peer.PodSelector, pod)
				default:
					there = there || matches(peer.NamespaceSelector, namespace) && (peer.PodSelector == nil || matches(peer.PodSelector, pod))
				}
			}
			if open && there {
				return true
			}
		}
	}
	return !denied
}

// TestPolicies: who may talk to whom, with the base alone and with each component that opens or
// closes something.
func TestPolicies(t *testing.T) {
	worker, migrate, stranger := labels.Set{"app": "outbox-worker"}, labels.Set{"app": "sagaz-migration"}, labels.Set{"app": "shop"}
	in := func(name string) labels.Set { return labels.Set{"kubernetes.io/metadata.name": name} }
	dns := labels.Set{"k8s-app": "kube-dns"}
	for _, tt := range []struct {
		name      string
		component string // none: the base
		from      labels.Set
		namespace labels.Set
		pod       labels.Set
		address   string
		port      int32
		want      bool
	}{
		{name: "DNS", from: worker, namespace: in("kube-system"), pod: dns, port: 53, want: true},
		{name: "DNSOfOpenShift", from: worker, namespace: in("openshift-dns"), pod: labels.Set{"dns.operator.openshift.io/daemonset-dns": "default"}, port: 5353, want: true},
		{name: "NodeLocalDNS", from: migrate, address: "169.254.20.10", port: 53, want: true},
		{name: "CloudDNS", from: worker, address: "169.254.169.254", port: 53, want: true},
		{name: "TheMetadataServer", from: worker, address: "169.254.169.254", port: 80},
		{name: "Database", from: worker, namespace: in("sagaz"), pod: labels.Set{"app": "postgresql"}, port: 5432, want: true},
		{name: "DatabaseOutside", from: worker, address: "203.0.113.7", port: 5432},
		{name: "DatabaseOutside", component: "external-database", from: worker, address: "203.0.113.7", port: 5432, want: true},
		{name: "DatabaseOutside", component: "external-database", from: migrate, address: "203.0.113.7", port: 5432, want: true},
		{name: "DatabaseInAnotherNamespace", component: "external-database", from: migrate, namespace: in("databases"), pod: labels.Set{"app": "pg"}, port: 5432, want: true},
		{name: "KafkaInAnotherNamespace", from: worker, namespace: in("kafka"), port: 9092, want: true},
		{name: "KafkaOutside", from: worker, address: "203.0.113.8", port: 9093},
		{name: "KafkaOutside", component: "external-broker", from: worker, address: "203.0.113.8", port: 9093, want: true},
		{name: "RabbitMQOutside", component: "external-broker", from: worker, address: "203.0.113.8", port: 5671, want: true},
		{name: "NATSInAnotherNamespace", from: worker, namespace: in("nats"), port: 4222, want: true},
		{name: "NATSOutside", from: worker, address: "203.0.113.8", port: 4222},
		{name: "NATSOutside", component: "external-broker", from: worker, address: "203.0.113.8", port: 4222, want: true},
		{name: "RedisInAnotherNamespace", from: worker, namespace: in("redis"), port: 6379, want: true},
		{name: "RedisOutside", from: worker, address: "203.0.113.8", port: 6379},
		{name: "RedisOutside", component: "external-broker", from: worker, address: "203.0.113.8", port: 6380, want: true},
		{name: "TheRestOutside", component: "external-broker", from: worker, address: "203.0.113.8", port: 443},
		{name: "HTTPSOutside", from: worker, address: "203.0.113.8", port: 443},
		{name: "HTTPSOutside", component: "external-https", from: worker, address: "203.0.113.8", port: 443, want: true},
		{name: "HTTPSOfTheCloud", component: "external-https", from: worker, address: "169.254.169.254", port: 443},
		{name: "HTTPOutside", component: "external-https", from: worker, address: "203.0.113.8", port: 80},
		{name: "AStranger", from: stranger, address: "203.0.113.9", port: 443, want: true},
		{name: "AStranger", component: "default-deny", from: stranger, address: "203.0.113.9", port: 443},
		{name: "AStrangersDNS", component: "default-deny", from: stranger, namespace: in("kube-system"), pod: dns, port: 53, want: true},
		{name: "AClient", component: "default-deny", from: labels.Set{"outbox-client": "true"}, namespace: in("sagaz"), pod: labels.Set{"app": "postgresql"}, port: 5432, want: true},
	} {
		t.Run(tt.name+"/"+tt.component, func(t *testing.T) {
			dir := "k8s"
			if tt.component != "" {
				dir = "k8s/components/" + tt.component
			}
			if got := reaches(t, decode(t, dir, build(t, dir)), tt.from, tt.namespace, tt.pod, tt.address, tt.port); got != tt.want {
				t.Errorf("allowed %v, want %v", got, tt.want)
			}
		})
	}
	// Namespace and label in one element are both asked; in two, either would do.
	from := find[*networkingv1.NetworkPolicy](t, file(t, "network-policies.yaml"), "allow-prometheus-scrape").Spec.Ingress[0].From
	if len(from) != 1 || from[0].NamespaceSelector == nil || from[0].PodSelector == nil {
		t.Errorf("who may scrape: %+v", from)
	}
}
