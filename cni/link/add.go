// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// addition is one interface that is being made.
type addition struct {
	*Interface
	kind maker
	// made: there is something of it to remove.
	made bool
	// unsure: nobody knows whether there is.
	unsure bool
	// index in the pod.
	index int
}

// Add makes interfaces in a pod's namespace: all, or none. They are born down, and
// up when they have their addresses. Announce tells the neighbours.
func (l *Links) Add(ctx context.Context, netnsPath string, specs ...Interface) error {
	return l.inPod(ctx, l.changes, netnsPath, func(p *pod) error { return p.add(ctx, specs) })
}

func (p *pod) add(ctx context.Context, specs []Interface) (err error) {
	all := make([]addition, len(specs))
	for i := range specs {
		kind, known := makerOf(specs[i].Kind)
		if !known {
			return fmt.Errorf("interface %s: interfaces of kind %q are unknown to this version", specs[i].Name, specs[i].Kind)
		}
		all[i] = addition{Interface: &specs[i], kind: kind}
		if specs[i].Kind != KindVeth {
			continue
		}
		if err := p.untag(ctx); err != nil {
			return fmt.Errorf("interface %s: %w", specs[i].Name, err)
		}
	}
	if err := p.findParents(specs); err != nil {
		return err
	}
	finished := false
	defer func() {
		if !finished {
			err = p.unmakeAll(all, err)
		}
	}()
	if err := p.create(ctx, all); err != nil {
		return err
	}
	if err := p.configure(all); err != nil {
		return err
	}
	finished = true
	return nil
}

// unmakeAll removes what was made, and returns the cause with what of it is left.
func (p *pod) unmakeAll(all []addition, cause error) error {
	var made []Interface
	var names, unsure []string
	for i := range all {
		switch {
		case all[i].made:
			made, names = append(made, *all[i].Interface), append(names, all[i].Name)
		case all[i].unsure:
			unsure = append(unsure, all[i].Name)
		}
	}
	if err := p.removeAll(made); err != nil {
		return &LeftError{Names: append(names, unsure...), Err: errors.Join(cause, err)}
	}
	if len(unsure) > 0 {
		return &LeftError{Names: unsure, Err: cause}
	}
	return cause
}

// create makes all links, down, under their final names, with our own settings.
func (p *pod) create(ctx context.Context, all []addition) error {
	const unset = "An interface keeps settings of the kernel's: routers may give it addresses, and its own may come late"
	restore, err := p.preset(all)
	preset := restore != nil
	if err != nil {
		klog.FromContext(ctx).Error(err, unset)
	}
	err = p.bear(all)
	if preset {
		restore()
	}
	if err != nil {
		return err
	}
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	born, err := p.inside.find(names)
	if err != nil {
		return err
	}
	for i := range all {
		a := &all[i]
		if a.index, err = born[i].index(); err != nil {
			return fmt.Errorf("interface %s: %w", a.Name, err)
		}
		if preset {
			continue
		}
		if err := p.writeSysctls(podSysctls(a.Interface)); err != nil {
			klog.FromContext(ctx).Error(err, unset, "interface", a.Name)
		}
	}
	return nil
}

// bear makes the links: those that are born by a request all at once, the
// others after them.
func (p *pod) bear(all []addition) error {
	var requests []*request
	births := make([]*request, len(all))
	for i := range all {
		a := &all[i]
		if a.kind.birth == nil {
			continue
		}
		more, err := a.kind.birth(p, a.Interface)
		if err != nil {
			return a.unmade(err)
		}
		births[i] = more[0]
		requests = append(requests, more...)
	}
	if err := p.outside.run(requests); err != nil {
		return errors.Join(err, p.recognise(all))
	}
	var failed []error
	for i := range all {
		a := &all[i]
		if births[i] == nil {
			continue
		}
		err := births[i].err
		switch {
		case isExists(err):
			err = p.bearAgain(a)
		case err != nil: // older kernels look at the name last
			if taken, _ := p.has(a.Name); taken {
				err = errTaken
			}
		}
		a.made = err == nil
		failed = append(failed, a.unmade(err))
	}
	for i := range all {
		a := &all[i]
		if err := errors.Join(failed...); err != nil {
			return err
		}
		var err error
		switch {
		case births[i] == nil:
			err = a.kind.create(p, a.Interface)
			a.made = err == nil
		case a.kind.connect != nil:
			err = a.kind.connect(p, a.Interface)
		}
		failed = append(failed, a.unmade(err))
	}
	return errors.Join(failed...)
}

// recognise finds out which links were made where the kernel's answers are lost.
// Another of the name would not have the address.
func (p *pod) recognise(all []addition) error {
	var failed []error
	for i := range all {
		found, err := p.handle.LinkByName(all[i].Name)
		if all[i].unsure = err != nil && !IsGone(err); all[i].unsure {
			failed = append(failed, fmt.Errorf("looking for interface %s: %w", all[i].Name, err))
		}
		all[i].made = err == nil && found.Attrs().HardwareAddr.String() == all[i].MAC
	}
	return errors.Join(failed...)
}

// unmade tells what was tried; nil for nil.
func (a *addition) unmade(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errTaken):
		return fmt.Errorf("interface %s: %w %s already", a.Name, errTaken, a.Name)
	}
	return fmt.Errorf("interface %s: making %s %s on %s: %w", a.Name, a.Kind, a.Name, a.Parent, refused(err, a.Interface))
}

// errTaken: CNI specification, ADD: an interface of that name must not exist.
var errTaken = errors.New("the pod has an interface")

// has says whether the pod has an interface.
func (p *pod) has(name string) (bool, error) {
	present, err := p.inside.find([]string{name})
	return err == nil && present[0].err == nil, err
}

// bearAgain is for a link whose name was taken: in the pod, which is an error; or
// it was that of the host's end, of an earlier attempt; or older kernels look the
// pod's name up in the host's namespace too, where eth0 exists: then the link is
// born under another name and takes the right one at once.
func (p *pod) bearAgain(a *addition) error {
	// Without an answer nothing is touched: the host's end may be that of an
	// interface that lives.
	switch taken, err := p.has(a.Name); {
	case err != nil:
		return err
	case taken:
		return errTaken
	}
	spec := *a.Interface
	if spec.HostEnd != "" {
		if err := removeHostEnd(p.Links, &spec); err != nil {
			return err
		}
	} else {
		spec.Name = hostEndPrefix + digest(a.Name, a.MAC)[:hashDigits]
	}
	requests, err := a.kind.birth(p, &spec)
	if err != nil {
		return err
	}
	if err := p.outside.run(requests); err != nil {
		return err
	}
	if err := requests[0].err; err != nil || spec.Name == a.Name {
		return err
	}
	born, err := p.handle.LinkByName(spec.Name)
	if err != nil {
		return err
	}
	if err := p.handle.LinkSetName(born, a.Name); err != nil {
		return errors.Join(err, p.handle.LinkDel(born))
	}
	return nil
}

// configure gives links their addresses, sets them up, and adds their routes: in
// one message for all, but where something has to be looked up in between.
func (p *pod) configure(all []addition) error {
	var requests []*request
	flush := func() error {
		err := p.inside.runAll(requests)
		requests = nil
		return err
	}
	for i := range all {
		a := &all[i]
		if err := p.addSysctls(a.Interface); err != nil {
			return a.unfinished(err)
		}
		first := len(requests)
		for _, prefix := range a.Addresses {
			requests = append(requests, addAddress(a.index, prefix))
		}
		requests = append(requests, setUp(a.index))
		if a.Source != nil && a.Source.Beside != "" {
			requests = a.tell(requests, first)
			if err := flush(); err != nil {
				return err
			}
			if err := p.routeBeside(a.Source); err != nil {
				return a.unfinished(err)
			}
			first = 0
		}
		requests = append(requests, sourcesOf(a.index, a.Interface)...)
		if !a.TakeDefault {
			requests = append(requests, routeRequests(a.index, unix.RT_TABLE_MAIN, a.Routes)...)
			requests = a.tell(requests, first)
			continue
		}
		requests = a.tell(requests, first)
		if err := flush(); err != nil {
			return err
		}
		if err := p.addRoutes(a.index, a.Interface); err != nil {
			return a.unfinished(err)
		}
	}
	return flush()
}

// tell has the errors of requests say for which interface they were.
func (a *addition) tell(requests []*request, from int) []*request {
	for _, r := range requests[from:] {
		r.what, r.parent = fmt.Sprintf("interface %s: configuring %s: %s", a.Name, a.Name, r.what), a.Parent
	}
	return requests
}

func (a *addition) unfinished(err error) error {
	return fmt.Errorf("interface %s: configuring %s: %w", a.Name, a.Name, explain(err, a.Parent))
}

// findParents looks for the devices of the host that interfaces stand on.
func (p *pod) findParents(specs []Interface) error {
	var names []string
	for i := range specs {
		if kind, _ := makerOf(specs[i].Kind); kind.birth != nil && !slices.Contains(names, specs[i].Parent) {
			names = append(names, specs[i].Parent)
		}
	}
	found, err := p.outside.find(names)
	if err != nil {
		return err
	}
	p.parents = map[string]*request{}
	for i, name := range names {
		p.parents[name] = found[i]
	}
	return nil
}
