#!/bin/sh
# Installs what we are measured beside and spoken to with: nginx, HAProxy, h2load, wrk, curl, iperf3, nmap, tcpdump, and ip and
# ethtool for namespaces of the network's tests.
set -eu
exec "$(dirname "$0")/debian.sh" "figures beside them and tests with them" nginx:nginx-light haproxy:haproxy \
    h2load:nghttp2-client curl:curl wrk:wrk iperf3:iperf3 nmap:nmap tcpdump:tcpdump ip:iproute2 ethtool:ethtool
