// Command kubelet-probe asks a URL as the kubelet does, with the kubelet's own prober and request, and says in one line of JSON
// how often it got which verdict: kubelet-probe [-n 100] [-timeout 1s] URL.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/probe"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
)

type report struct {
	Verdicts map[probe.Result]int `json:"verdicts"`
	Outputs  map[string]int       `json:"outputs"`
	WorstUS  int64                `json:"worst_us"`
}

func main() {
	count := flag.Int("n", 1, "how many probes, one after the other")
	timeout := flag.Duration("timeout", time.Second, "of a probe, as timeoutSeconds")
	flag.Parse()
	if err := run(flag.Arg(0), *count, *timeout); err != nil {
		fmt.Fprintln(os.Stderr, "kubelet-probe:", err)
		os.Exit(1)
	}
}

func run(target string, count int, timeout time.Duration) error {
	address, err := url.Parse(target)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(address.Port())
	if err != nil {
		return fmt.Errorf("%q needs a port: %w", target, err)
	}
	action := &v1.HTTPGetAction{
		Scheme: v1.URISchemeHTTP, Host: address.Hostname(), Port: intstr.FromInt32(int32(port)), Path: address.RequestURI(),
	}
	prober := httpprobe.New(false)
	seen := report{Verdicts: map[probe.Result]int{}, Outputs: map[string]int{}}
	for range count {
		request, err := httpprobe.NewRequestForHTTPGetAction(action, &v1.Container{}, "", "probe")
		if err != nil {
			return err
		}
		begun := time.Now()
		verdict, output, err := prober.Probe(request, timeout)
		if err != nil {
			return err
		}
		seen.WorstUS = max(seen.WorstUS, time.Since(begun).Microseconds())
		seen.Verdicts[verdict]++
		seen.Outputs[output]++
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}
