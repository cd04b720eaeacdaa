// Package dashboards makes the dashboards of monitoring/ and checks them: one file a dashboard, of rows of panels.
//
//	go test ./monitoring/dashboards -run TestDashboards -update
//
// writes them. Without -update the files are compared, and held against the rules of Grafana's dashboard linter, which cannot be had as a library.
// Series and labels are those of the table of docs/metrics.md.
package dashboards
