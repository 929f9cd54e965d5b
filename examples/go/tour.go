// A tour of KvDB's data API from Go, with stubs generated from the .proto files (kvdbv1; generate.sh
// makes them anew).
//
//	go mod tidy
//	kvdb dev --temporary &
//	go run . 127.0.0.1:7400
//
// With Debian's packages golang-google-grpc-dev and golang-github-golang-protobuf-1-5-dev instead of modules, and this folder
// as src/kvdb.example/tour of a GOPATH: GO111MODULE=off GOPATH=DIR:/usr/share/gocode go run .
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "kvdb.example/tour/kvdbv1"
)

// writes hands out identities under which writes may be sent again: each takes effect once.
type writes struct {
	client   string
	sequence uint64
}

func (w *writes) next() *pb.RequestId {
	w.sequence++
	return &pb.RequestId{
		ClientId: w.client,
		Sequence: w.sequence,
		// One write at a time: all before this one are settled.
		AckedBelow:   w.sequence,
		ValidUntilMs: uint64(time.Now().Add(5 * time.Minute).UnixMilli()),
	}
}

// send sends a write under its identity. Until when an identity is valid is judged by the clock of the key's
// shard. Where that differs from the clock here, the write is refused before anything is done, and the refusal
// tells the shard's time: the identity is stamped anew by that, and the write sent again. Never do that after an
// attempt whose answer was lost: it must stay the same.
func send[Request, Answer any](
	ctx context.Context,
	method func(context.Context, Request, ...grpc.CallOption) (Answer, error),
	request Request,
	id *pb.RequestId,
) (Answer, error) {
	for attempt := 0; ; attempt++ {
		var trailers metadata.MD
		answer, err := method(ctx, request, grpc.Trailer(&trailers))
		told := trailers.Get("x-shard-time-ms")
		if err == nil || len(told) != 1 || attempt == 2 {
			return answer, err
		}
		shardTime, parseError := strconv.ParseUint(told[0], 10, 64)
		if parseError != nil {
			return answer, err
		}
		id.ValidUntilMs = shardTime + 300_000
	}
}

func check(what string, is bool) {
	if !is {
		log.Fatalf("not as it should be: %s", what)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	endpoint := "127.0.0.1:7400"
	if len(os.Args) > 1 {
		endpoint = os.Args[1]
	}
	// A message may have up to 20 MiB; Go's default is 4.
	connection, err := grpc.Dial(endpoint, grpc.WithInsecure(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(20<<20)))
	must(err)
	defer connection.Close()
	kv := pb.NewKvClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	random := make([]byte, 8)
	_, err = rand.Read(random)
	must(err)
	ids := &writes{client: "tour-" + hex.EncodeToString(random)}

	// Put and get. Keys and values are bytes.
	key := []byte("go-tour:greeting")
	put := &pb.PutRequest{Key: key, Value: []byte("hello"), RequestId: ids.next()}
	written, err := send(ctx, kv.Put, put, put.RequestId)
	must(err)
	found, err := kv.Get(ctx, &pb.GetRequest{Key: key})
	must(err)
	check("what was written is read", found.Found && string(found.Value) == "hello")

	// Compare and set: only if nobody has written since.
	update := &pb.PutRequest{
		Key: key, Value: []byte("hello again"),
		Condition: &pb.Condition{Kind: &pb.Condition_IfVersion{IfVersion: written.Version}},
	}
	first, err := kv.Put(ctx, update)
	must(err)
	second, err := kv.Put(ctx, update)
	must(err)
	check("the first wins", first.Applied && !second.Applied)

	// A retry under the same id does not count twice.
	increment := &pb.IncrementRequest{Key: []byte("go-tour:visits"), Delta: 1, RequestId: ids.next()}
	once, err := send(ctx, kv.Increment, increment, increment.RequestId)
	must(err)
	again, err := kv.Increment(ctx, increment)
	must(err)
	check("it counts once", once.Value == again.Value)

	// An identity that was stamped by a clock that is wrong by a day.
	late := &pb.DeleteRequest{Key: []byte("go-tour:nothing"), RequestId: ids.next()}
	late.RequestId.ValidUntilMs -= 86_400_000
	deleted, err := send(ctx, kv.Delete, late, late.RequestId)
	must(err)
	check("nothing was there", !deleted.Applied)

	// Many at once; each has a result of its own.
	var operations []*pb.WriteOperation
	for n := 0; n < 10; n++ {
		operations = append(operations, &pb.WriteOperation{
			Key:    []byte(fmt.Sprintf("go-tour:item:%d", n)),
			Action: &pb.WriteOperation_Put{Put: &pb.PutAction{Value: []byte(fmt.Sprint(n))}},
		})
	}
	batch, err := kv.BatchWrite(ctx, &pb.BatchWriteRequest{Operations: operations})
	must(err)
	check("all are written", len(batch.Results) == 10 && batch.Results[9].Applied)

	// A scan comes in pages.
	scan, err := kv.Scan(ctx, &pb.ScanRequest{Prefix: []byte("go-tour:item:")})
	must(err)
	items := 0
	for {
		page, err := scan.Recv()
		if err == io.EOF {
			break
		}
		must(err)
		items += len(page.Items)
	}
	check("the scan finds all", items == 10)

	// A watch: its first message says that it stands.
	watch, err := kv.Watch(ctx, &pb.WatchRequest{Prefix: []byte("go-tour:item:")})
	must(err)
	stands, err := watch.Recv()
	must(err)
	check("it stands", stands.Progress != nil)
	item := &pb.DeleteRequest{Key: []byte("go-tour:item:7"), RequestId: ids.next()}
	_, err = send(ctx, kv.Delete, item, item.RequestId)
	must(err)
	for {
		message, err := watch.Recv()
		must(err)
		if len(message.Events) > 0 {
			event := message.Events[0]
			check("the delete is told", event.Kind == pb.WatchEvent_DELETE && string(event.Key) == "go-tour:item:7")
			break
		}
	}

	// A refusal has a status, and a code in the trailers.
	var trailers metadata.MD
	_, err = kv.Put(ctx, &pb.PutRequest{Value: []byte("x")}, grpc.Trailer(&trailers))
	code := trailers.Get("x-error-code")
	check("an empty key is refused", err != nil && len(code) == 1 && code[0] == "INVALID_ARGUMENT")

	fmt.Println("the tour is over: all of it worked")
}
