// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package report writes what a pod got onto the pod: the NPWG annotation
// network-status and the sandbox that it describes. It does so behind the
// CNI's back: ADD has been answered before, so that an API server that is slow
// or away never delays a pod's start.
package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// workers write in parallel when many pods start at once.
	workers = 4
	// retryFirst and retryLast bound the pause after a failed write: 200 ms,
	// 400 ms, ... 30 s. Writes are never given up while the pod may exist.
	retryFirst, retryLast = 200 * time.Millisecond, 30 * time.Second
	// conflictTries bounds the writes that conflict with others' writes, which
	// the API server resolves itself except where the pod is being replaced.
	conflictTries = 3
	// writeTimeout bounds one write, so that a hanging connection does not hold
	// a worker.
	writeTimeout = 10 * time.Second
)

// Reporter writes the annotations of the pods of one node. The newest report
// of a pod counts; earlier ones that were not written yet are dropped.
type Reporter struct {
	reader client.Reader
	writer client.SubResourceWriter
	queue  workqueue.TypedRateLimitingInterface[types.UID]

	mu      sync.Mutex
	pending map[types.UID]report
}

type report struct {
	pod       types.NamespacedName
	sandboxID string
	status    string
	// uses is what netplane.io/attached-networks is to say, if counted.
	uses    string
	counted bool
}

// New makes a Reporter that writes through pods/status; nothing is written
// before Run. The reader, a cache, spares writes that would change nothing.
func New(reader client.Reader, pods client.StatusClient) *Reporter {
	return &Reporter{
		reader:  reader,
		writer:  pods.Status(),
		pending: map[types.UID]report{},
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](retryFirst, retryLast),
			workqueue.TypedRateLimitingQueueConfig[types.UID]{Name: "network-status"}),
	}
}

// Attached has the pod's annotations say what this sandbox got, and how many
// interfaces that are on which network; nil uses are not known, and not written.
// It never blocks.
func (r *Reporter) Attached(pod types.NamespacedName, uid types.UID, sandboxID string, attachments []podnetworks.Attachment, uses []podnetworks.Use) {
	status, err := podnetworks.FormatStatus(attachments)
	if err != nil || uid == "" {
		// Attachments are strings and numbers, which always have a JSON form;
		// without its UID a pod cannot be told from its successor.
		return
	}
	r.mu.Lock()
	r.pending[uid] = report{pod: pod, sandboxID: sandboxID, status: status, uses: podnetworks.FormatAttached(uses), counted: uses != nil}
	r.mu.Unlock()
	r.queue.Add(uid)
}

// Detached forgets what was not written yet about a sandbox. The annotation
// stays: the pod is going, or a new sandbox will report itself.
func (r *Reporter) Detached(uid types.UID, sandboxID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending[uid].sandboxID == sandboxID {
		delete(r.pending, uid)
	}
}

// Pending counts the reports that are not written yet.
func (r *Reporter) Pending() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pending)
}

// Run writes reports until ctx ends. It can be run once.
func (r *Reporter) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, r.queue.ShutDown)
	defer stop()
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for r.next(ctx) {
			}
		})
	}
	running.Wait()
	return nil
}

func (r *Reporter) next(ctx context.Context) bool {
	uid, shutdown := r.queue.Get()
	if shutdown {
		return false
	}
	defer r.queue.Done(uid)
	r.mu.Lock()
	todo, ok := r.pending[uid]
	r.mu.Unlock()
	if !ok {
		r.queue.Forget(uid)
		return true
	}
	logger := klog.FromContext(ctx).WithValues("pod", todo.pod, "podUID", uid, "sandbox", todo.sandboxID)
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := r.write(ctx, uid, todo)
	switch {
	case err == nil:
		logger.V(4).Info("Reported the pod's networks")
	case gone(err), replaced(err), apierrors.IsConflict(err) && r.queue.NumRequeues(uid) >= conflictTries:
		logger.V(2).Info("The pod is gone; its networks are not reported", "err", err)
	default:
		logger.Info("Reporting the pod's networks failed; trying again", "err", err)
		r.queue.AddRateLimited(uid)
		return true
	}
	r.finish(uid, todo)
	return true
}

// finish forgets a report unless a newer one took its place meanwhile; that
// one is in the queue again.
func (r *Reporter) finish(uid types.UID, done report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending[uid] == done {
		delete(r.pending, uid)
	}
	r.queue.Forget(uid)
}

// gone: the pod, or its whole namespace, does not exist any more.
func gone(err error) bool { return apierrors.IsNotFound(err) }

// replaced: another pod has the name now. The API server takes a patch whose
// metadata.uid differs for an attempt to change the UID.
func replaced(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(status.Status().Details.Causes, func(c metav1.StatusCause) bool { return c.Field == "metadata.uid" })
}

func (r *Reporter) write(ctx context.Context, uid types.UID, todo report) error {
	shown := &corev1.Pod{}
	err := r.reader.Get(ctx, todo.pod, shown)
	if err == nil && shown.UID == uid && written(shown, todo) {
		return nil
	}
	patch, err := mergePatch(uid, todo)
	if err != nil {
		return err
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: todo.pod.Namespace, Name: todo.pod.Name}}
	if err := r.writer.Patch(ctx, pod, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(v1alpha1.FieldOwnerAgent)); err != nil {
		return fmt.Errorf("writing network-status: %w", err)
	}
	return nil
}

func written(pod *corev1.Pod, todo report) bool {
	for key, value := range todo.annotations() {
		if has, ok := pod.Annotations[key]; !ok || has != value {
			return false
		}
	}
	return true
}

func (r *report) annotations() map[string]string {
	out := map[string]string{
		v1alpha1.AnnotationNetworkStatus:        r.status,
		v1alpha1.AnnotationNetworkStatusSandbox: r.sandboxID,
	}
	if r.counted {
		out[v1alpha1.AnnotationAttached] = r.uses
	}
	return out
}

// mergePatch carries the UID as a precondition.
func mergePatch(uid types.UID, todo report) ([]byte, error) {
	raw, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid, "annotations": todo.annotations()}})
	if err != nil {
		return nil, fmt.Errorf("encoding the patch of network-status: %w", err)
	}
	return raw, nil
}
