// An S3 server for the tests: Versity's gateway in front of a folder, with the account of our choice.
//
// It prints `ready PORT` when it listens, and ends with its standard input.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

const startSecondsMax = 30

func main() {
	folder := flag.String("folder", "", "where the buckets lie")
	listen := flag.String("listen", "", "address")
	versions := flag.String("versions", "", "where the versions of objects lie; none without it")
	flag.Parse()

	// What the gateway says is not for who waits for `ready`.
	output := os.Stdout
	os.Stdout = os.Stderr

	store, err := posix.New(*folder, meta.XattrMeta{}, posix.PosixOpts{
		ValidateBucketNames: true,
		VersioningDir:       *versions,
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	go announce(output, *listen)
	// The key not by an argument, which everybody on the machine may read.
	err = embedgw.RunVersityGW(ctx, store, &embedgw.Config{
		RootUserAccess:    os.Getenv("S3_ACCESS_KEY"),
		RootUserSecret:    os.Getenv("S3_SECRET_KEY"),
		Ports:             []string{*listen},
		MaxConnections:    1000,
		MaxRequests:       1000,
		MultipartMaxParts: 10000,
		KeepAlive:         true,
		Quiet:             true,
	})
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

// announce says so once somebody can connect; the gateway itself tells nobody.
func announce(output io.Writer, address string) {
	for range startSecondsMax * 20 {
		if connection, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			_ = connection.Close()
			_, port, _ := net.SplitHostPort(address)
			fmt.Fprintf(output, "ready %s\n", port)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	log.Fatal("it does not listen")
}
