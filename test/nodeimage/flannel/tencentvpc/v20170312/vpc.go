// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v20170312 has the names that flannel's backend tencent-vpc is
// compiled with. No test uses the backend: every call says that it cannot.
package v20170312

import "errors"

var errAbsent = errors.New("this build of flannel has no client of Tencent's cloud")

// Client reaches nothing.
type Client struct{}

// NewClientWithSecretId makes a Client of any account.
func NewClientWithSecretId(_, _, _ string) (*Client, error) { return &Client{}, nil }

// Filter selects what is described.
type Filter struct {
	Name   *string
	Values []*string
}

// Route is one of a RouteTable.
type Route struct {
	DestinationCidrBlock, GatewayType, GatewayId, RouteType *string
	RouteId                                                 *uint64
	Enabled                                                 *bool
}

// RouteTable has the routes of one table.
type RouteTable struct {
	RouteTableId *string
	RouteSet     []*Route
}

// DescribeRouteTablesRequest asks for tables.
type DescribeRouteTablesRequest struct{ Filters []*Filter }

// NewDescribeRouteTablesRequest asks for all of them.
func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return &DescribeRouteTablesRequest{}
}

// DescribeRouteTablesResponse is never answered.
type DescribeRouteTablesResponse struct {
	Response *struct{ RouteTableSet []*RouteTable }
}

// DescribeRouteTables fails.
func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errAbsent
}

// RoutesRequest names routes of a table.
type RoutesRequest struct {
	RouteTableId *string
	Routes       []*Route
}

// NewCreateRoutesRequest names none yet.
func NewCreateRoutesRequest() *RoutesRequest { return &RoutesRequest{} }

// NewDeleteRoutesRequest names none yet.
func NewDeleteRoutesRequest() *RoutesRequest { return &RoutesRequest{} }

// CreateRoutes fails.
func (*Client) CreateRoutes(*RoutesRequest) (*struct{}, error) { return nil, errAbsent }

// DeleteRoutes fails.
func (*Client) DeleteRoutes(*RoutesRequest) (*struct{}, error) { return nil, errAbsent }
