"""How fast /healthz answers while a job trains: python3 tests/bench/health.py URL [COUNT]. One connection, one request after the other."""
import http.client
import statistics
import sys
import time
import urllib.parse

url = urllib.parse.urlparse(sys.argv[1])
count = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
connection = http.client.HTTPConnection(url.hostname, url.port)
times = []
for _ in range(count):
    started = time.perf_counter()
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    times.append(1000 * (time.perf_counter() - started))
    time.sleep(0.002)
times.sort()
print(f"/healthz over {count} requests: median {statistics.median(times):.3f} ms, p99 {times[int(0.99 * count)]:.3f} ms")
