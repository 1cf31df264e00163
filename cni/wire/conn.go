// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// ErrTooLong is returned for a line that exceeds MaxLine.
var ErrTooLong = errors.New("message exceeds 1 MiB")

// Conn carries messages over one connection. It is not safe for concurrent
// use, but one goroutine may read while another writes.
type Conn struct {
	raw    net.Conn
	reader *bufio.Reader
}

// NewConn wraps a connection; Close closes it.
func NewConn(raw net.Conn) *Conn {
	return &Conn{raw: raw, reader: bufio.NewReader(raw)}
}

// Close ends the connection. An agent that was asked to prepare and not yet to
// commit takes it as an abort.
func (c *Conn) Close() error { return c.raw.Close() }

// SetDeadline bounds the reads and writes that follow; zero removes the bound.
func (c *Conn) SetDeadline(t time.Time) error { return c.raw.SetDeadline(t) }

// Read decodes the next line into message. It returns io.EOF at the end.
func (c *Conn) Read(message any) error {
	line, err := c.readLine()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, message); err != nil {
		return fmt.Errorf("decoding message: %w", err)
	}
	return nil
}

func (c *Conn) readLine() ([]byte, error) {
	var line []byte
	for {
		part, err := c.reader.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			return nil, ErrTooLong
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// Write encodes message as one line.
func (c *Conn) Write(message any) error {
	line, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encoding message: %w", err)
	}
	if len(line) >= MaxLine {
		return ErrTooLong
	}
	_, err = c.raw.Write(append(line, '\n'))
	return err
}

// Client is the binary's side of one connection.
type Client struct {
	conn *Conn
}

// Dial connects to the agent's socket.
func Dial(ctx context.Context, socket string) (*Client, error) {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return &Client{conn: NewConn(raw)}, nil
}

// Close ends the connection, which aborts an uncommitted ADD.
func (c *Client) Close() error { return c.conn.Close() }

// Call sends one request and waits for its response until ctx's deadline. The
// error is an *Error if it is the agent's own; every other error means that
// the agent did not answer.
func (c *Client) Call(ctx context.Context, request Request) (*Response, error) {
	request.Version = Version
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("setting deadline: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.conn.Write(request); err != nil {
		return nil, fmt.Errorf("sending %s: %w", request.Op, err)
	}
	var response Response
	if err := c.conn.Read(&response); err != nil {
		return nil, fmt.Errorf("waiting for the answer to %s: %w", request.Op, err)
	}
	if response.Version != Version {
		return nil, fmt.Errorf("the agent speaks protocol version %d, this binary %d: an upgrade is under way", response.Version, Version)
	}
	if response.Error != nil {
		return nil, response.Error
	}
	return &response, nil
}
