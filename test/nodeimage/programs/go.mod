// Two small programs of our own that the test environment needs.
module github.com/netplane/netplane/test/nodeimage/programs

go 1.26.0

tool (
	github.com/netplane/netplane/test/nodeimage/programs/ociruntime
	github.com/netplane/netplane/test/nodeimage/programs/pause
)
