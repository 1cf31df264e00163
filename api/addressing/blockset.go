// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addressing

import (
	"iter"
	"math/bits"
	"net/netip"
)

// perWord is how many blocks one word of a BlockSet stands for.
const perWord = 64

// BlockSet is a set of blocks of one plan, made for finding those that are not
// in it: full words are passed in one step. It takes memory for its members,
// whatever the size of the subnet. It is not safe for concurrent use.
type BlockSet struct {
	plan  *Plan
	words map[uint64]uint64 // a bit for each block; without the words that are zero
	left  int64
}

// NewBlockSet returns an empty set of the plan's blocks.
func (p *Plan) NewBlockSet() *BlockSet {
	return &BlockSet{plan: p, words: map[uint64]uint64{}, left: p.TotalCapacity()}
}

// Has tells whether the block is in the set.
func (s *BlockSet) Has(block netip.Prefix) bool {
	index, ok := s.plan.index(block)
	return ok && s.words[index/perWord]&bitOf(index) != 0
}

// Add puts a block into the set. One that CheckBlock refuses is left out.
func (s *BlockSet) Add(block netip.Prefix) {
	index, ok := s.plan.index(block)
	if !ok || s.words[index/perWord]&bitOf(index) != 0 {
		return
	}
	s.words[index/perWord] |= bitOf(index)
	s.left -= int64(s.plan.Capacity(block))
}

// Remove takes a block out of the set, if it is in it.
func (s *BlockSet) Remove(block netip.Prefix) {
	index, ok := s.plan.index(block)
	if !ok || s.words[index/perWord]&bitOf(index) == 0 {
		return
	}
	if s.words[index/perWord] &^= bitOf(index); s.words[index/perWord] == 0 {
		delete(s.words, index/perWord)
	}
	s.left += int64(s.plan.Capacity(block))
}

// Left is the sum of Capacity over the plan's blocks that are not in the set.
func (s *BlockSet) Left() int64 { return s.left }

// Candidates yields what the plan's Candidates do, less what is in the set,
// which must not change meanwhile.
func (s *BlockSet) Candidates(node string) iter.Seq[netip.Prefix] {
	total := s.plan.total()
	start := s.plan.start(node)
	return func(yield func(netip.Prefix) bool) {
		// Once around: to the end, and from the first to where it began.
		_ = s.walk(start, total, yield) && s.walk(0, start, yield)
	}
}

// walk yields the blocks from one index to before another. It is false if
// yield has asked to stop.
func (s *BlockSet) walk(from, to uint64, yield func(netip.Prefix) bool) bool {
	for index := from; index < to; index++ {
		if free := ^s.words[index/perWord] >> (index % perWord); free == 0 {
			index |= perWord - 1 // the rest of the word is full
			continue
		} else if index += uint64(bits.TrailingZeros64(free)); index >= to {
			return true
		}
		if block := s.plan.block(index); !s.plan.isStatic(block) && !yield(block) {
			return false
		}
	}
	return true
}

func bitOf(index uint64) uint64 { return 1 << (index % perWord) }
