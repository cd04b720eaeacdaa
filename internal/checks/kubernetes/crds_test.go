package kubernetes

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The kinds that operators bring, with the documented fields that the components use: anything else is refused by the strict
// decoder. Their own Go modules bring half of Kubernetes each.

// meta is what every object has.
type meta struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
}

// apiService is apiregistration.k8s.io/v1.
type apiService struct {
	meta `json:",inline"`
	Spec struct {
		Group                 string `json:"group"`
		Version               string `json:"version"`
		GroupPriorityMinimum  int32  `json:"groupPriorityMinimum"`
		VersionPriority       int32  `json:"versionPriority"`
		InsecureSkipTLSVerify bool   `json:"insecureSkipTLSVerify"`
		Service               struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"service"`
	} `json:"spec"`
}

// scaledObject is keda.sh/v1alpha1 (KEDA 2.20).
type scaledObject struct {
	meta `json:",inline"`
	Spec struct {
		ScaleTargetRef struct {
			Name string `json:"name"`
		} `json:"scaleTargetRef"`
		PollingInterval int32 `json:"pollingInterval"`
		MinReplicaCount int32 `json:"minReplicaCount"`
		MaxReplicaCount int32 `json:"maxReplicaCount"`
		Fallback        struct {
			FailureThreshold int32  `json:"failureThreshold"`
			Replicas         int32  `json:"replicas"`
			Behavior         string `json:"behavior"`
		} `json:"fallback"`
		Advanced struct {
			HorizontalPodAutoscalerConfig struct {
				Name     string                                         `json:"name"`
				Behavior *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior"`
			} `json:"horizontalPodAutoscalerConfig"`
		} `json:"advanced"`
		Triggers []struct {
			Type       string            `json:"type"`
			MetricType string            `json:"metricType"`
			Metadata   map[string]string `json:"metadata"`
		} `json:"triggers"`
	} `json:"spec"`
}

// podMonitor is monitoring.coreos.com/v1.
type podMonitor struct {
	meta `json:",inline"`
	Spec struct {
		JobLabel            string               `json:"jobLabel"`
		Selector            metav1.LabelSelector `json:"selector"`
		PodMetricsEndpoints []struct {
			Port     string `json:"port"`
			Path     string `json:"path"`
			Interval string `json:"interval"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

// secretStore is external-secrets.io/v1, for Vault with Kubernetes' own accounts.
type secretStore struct {
	meta `json:",inline"`
	Spec struct {
		Provider struct {
			Vault struct {
				Server  string `json:"server"`
				Path    string `json:"path"`
				Version string `json:"version"`
				Auth    struct {
					Kubernetes struct {
						MountPath         string `json:"mountPath"`
						Role              string `json:"role"`
						ServiceAccountRef struct {
							Name string `json:"name"`
						} `json:"serviceAccountRef"`
					} `json:"kubernetes"`
				} `json:"auth"`
			} `json:"vault"`
		} `json:"provider"`
	} `json:"spec"`
}

// externalSecret is external-secrets.io/v1.
type externalSecret struct {
	meta `json:",inline"`
	Spec struct {
		RefreshInterval string `json:"refreshInterval"`
		SecretStoreRef  struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
		} `json:"secretStoreRef"`
		Target struct {
			Name           string `json:"name"`
			CreationPolicy string `json:"creationPolicy"`
		} `json:"target"`
		Data []struct {
			SecretKey string `json:"secretKey"`
			RemoteRef struct {
				Key      string `json:"key"`
				Property string `json:"property"`
			} `json:"remoteRef"`
		} `json:"data"`
	} `json:"spec"`
}

// cnpgCluster is postgresql.cnpg.io/v1 (CloudNativePG 1.30).
type cnpgCluster struct {
	meta `json:",inline"`
	Spec struct {
		Instances         int    `json:"instances"`
		ImageName         string `json:"imageName"`
		InheritedMetadata struct {
			Labels map[string]string `json:"labels"`
		} `json:"inheritedMetadata"`
		Bootstrap struct {
			InitDB struct {
				Database               string   `json:"database"`
				Owner                  string   `json:"owner"`
				PostInitApplicationSQL []string `json:"postInitApplicationSQL"`
			} `json:"initdb"`
		} `json:"bootstrap"`
		Managed struct {
			Roles []struct {
				Name        string `json:"name"`
				Ensure      string `json:"ensure"`
				Login       bool   `json:"login"`
				Replication bool   `json:"replication"`
			} `json:"roles"`
		} `json:"managed"`
		ReplicationSlots struct {
			HighAvailability struct {
				Enabled                    bool `json:"enabled"`
				SynchronizeLogicalDecoding bool `json:"synchronizeLogicalDecoding"`
			} `json:"highAvailability"`
		} `json:"replicationSlots"`
		PostgreSQL struct {
			Parameters map[string]string `json:"parameters"`
		} `json:"postgresql"`
		Resources corev1.ResourceRequirements `json:"resources"`
		Storage   struct {
			Size string `json:"size"`
		} `json:"storage"`
	} `json:"spec"`
}
