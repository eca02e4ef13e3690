// A vCenter simulator for the tests: govmomi's, with an inventory and an address of our choice.
//
// It prints `ready PORT` when it listens, and ends with its standard input.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"

	_ "github.com/vmware/govmomi/pbm/simulator"
	"github.com/vmware/govmomi/simulator"
)

func main() {
	model := simulator.VPX()
	flag.IntVar(&model.Datacenter, "datacenters", 1, "number of datacenters")
	flag.IntVar(&model.Cluster, "clusters", 1, "clusters in each datacenter")
	flag.IntVar(&model.ClusterHost, "cluster-hosts", 1, "hosts in each cluster")
	flag.IntVar(&model.Host, "hosts", 0, "hosts without a cluster in each datacenter")
	flag.IntVar(&model.Datastore, "datastores", 1, "datastores in each datacenter")
	flag.IntVar(&model.Machine, "vms", 0, "VMs in each resource pool")
	flag.BoolVar(&model.Autostart, "autostart", false, "power the VMs on")
	// vcsim's own is the same everywhere, and what tells vCenters apart.
	about := &model.ServiceContent.About
	flag.StringVar(&about.InstanceUuid, "identity", about.InstanceUuid, "uuid of the vCenter")
	user := flag.String("user", "backup@vsphere.local", "the account that may log in")
	listen := flag.String("listen", "127.0.0.1:0", "address")
	flag.Parse()

	// Not by an argument, which everybody on the machine may read.
	password := os.Getenv("VCSIM_PASSWORD")
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	model.Service.RegisterEndpoints = true
	model.Service.TLS = new(tls.Config)
	model.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, password)}
	server := model.Service.NewServer()
	fmt.Printf("ready %s\n", server.URL.Port())
	_, _ = io.Copy(io.Discard, os.Stdin)
	server.Close()
	model.Remove()
}
