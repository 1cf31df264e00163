// Stands in for a cloud's client that flannel's backend for it needs to be
// compiled. Each call fails.
module github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/vpc

go 1.26.0
