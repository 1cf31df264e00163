// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"
	"unicode/utf8"
)

// sumLength is the checksum in hexadecimal digits and the blank behind it.
const sumLength = 9

// appendLine appends a record as a line of the journal. It writes the JSON
// itself, as every address of every pod passes here; decode reads it with
// encoding/json. After an error the result is of no use.
func appendLine(line []byte, r *record) ([]byte, error) {
	start := len(line)
	line = append(line, "00000000 "...)
	line = append(line, `{"op":"`...)
	line = append(line, r.Op...)
	line = append(line, `","leases":[`...)
	for i := range r.Leases {
		if i > 0 {
			line = append(line, ',')
		}
		var err error
		if line, err = r.Leases[i].appendJSON(line); err != nil {
			return line, err
		}
	}
	line = append(line, ']')
	if !r.At.IsZero() {
		line = append(line, `,"at":"`...)
		line = append(r.At.AppendFormat(line, time.RFC3339Nano), '"')
	}
	if len(r.Freed) > 0 { // of a compacted journal only
		text, err := json.Marshal(r.Freed)
		if err != nil {
			return line, fmt.Errorf("encoding a journal record: %w", err)
		}
		line = append(line, `,"freed":`...)
		line = append(line, text...)
	}
	line = append(line, '}')
	sum := crc32.ChecksumIEEE(line[start+sumLength:])
	hex.Encode(line[start:], []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	return append(line, '\n'), nil
}

func (l *Lease) appendJSON(line []byte) ([]byte, error) {
	line = append(line, '{')
	for _, field := range []struct{ key, value string }{
		{"podUID", l.PodUID}, {"podNamespace", l.PodNamespace}, {"podName", l.PodName}, {"containerID", l.ContainerID},
		{"ifname", l.IfName}, {"netns", l.NetNS}, {"network", l.Network}, {"networkUID", string(l.NetworkUID)},
	} {
		if field.value == "" {
			continue
		}
		line = append(line, '"')
		line = append(line, field.key...)
		line = append(line, `":`...)
		var err error
		if line, err = appendString(line, field.value); err != nil {
			return line, err
		}
		line = append(line, ',')
	}
	line = append(line, `"address":"`...)
	line = l.Address.AppendTo(line)
	line = append(line, `","block":"`...)
	line = l.Block.AppendTo(line)
	line = append(line, '"')
	if l.Node.IsValid() {
		line = append(line, `,"node":"`...)
		line = l.Node.AppendTo(line)
		line = append(line, '"')
	}
	if l.Fixed {
		line = append(line, `,"fixed":true`...)
	}
	line = append(line, `,"since":"`...)
	line = l.Since.AppendFormat(line, time.RFC3339Nano)
	return append(line, `"}`...), nil
}

// appendString quotes text. Names and IDs of Kubernetes need no escapes.
func appendString(line []byte, text string) ([]byte, error) {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			quoted, err := json.Marshal(text)
			if err != nil {
				return line, fmt.Errorf("encoding a journal record: %w", err)
			}
			return append(line, quoted...), nil
		}
	}
	line = append(line, '"')
	line = append(line, text...)
	return append(line, '"'), nil
}
