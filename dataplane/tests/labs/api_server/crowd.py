"""Fills an API server with a large cluster, changes it piece by piece, and says how soon an agent had each change live.

Standard input: {"server": URL, "authority": FILE, "token": TEXT, "place": NAMESPACE of the server, "pods": N, "policies": N,
"rounds": N, "agent": null or {"place": NAMESPACE, "metrics": URL, "process": PID}}. Without an agent it fills, with one it
changes. Standard output: {"filled_s": S} or {"idle_cpu": SHARE, "resident_mb": MB, "changes": {WHAT: {"count": N, "mean_ms": MEAN,
"within_ms": [[BOUND, SHARE], ...], "translated_ms": MEAN}}}.

The times are the agent's own, from the moment at which the watch has delivered a change until the dataplane has said that it
is live on every worker.
"""

import ctypes
import http.client
import json
import os
import queue
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request

NODES = NAMESPACES = 300
APPS = 20
WRITERS = 16
PATIENCE = 30
CLONE_NEWNET = 0x40000000
LIVE = "penstock_agent_dataplane_live_after_seconds"
TRANSLATED = "penstock_agent_translated_in_seconds_sum"


def enter(namespace):
    """Puts this thread into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


class Server:
    """Speaks to the API server from its own namespace, over one connection."""

    def __init__(self, task):
        url = urllib.parse.urlparse(task["server"])
        context = ssl.create_default_context(cafile=task["authority"])
        self.connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=PATIENCE, context=context)
        self.headers = {"Authorization": f"Bearer {task['token']}"}

    def send(self, method, path, value, kind="application/json"):
        self.connection.request(method, path, json.dumps(value), self.headers | {"Content-Type": kind})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]}")


def pod(number):
    node, namespace = number % NODES, number % NAMESPACES
    return f"/api/v1/namespaces/team{namespace}/pods", {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": f"app-{number}", "labels": {"app": f"app{number // NAMESPACES % APPS}", "tier": "web"}},
        "spec": {
            "nodeName": f"crowd{node}",
            "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
    }


def address_of(number):
    node = number % NODES
    return f"10.{1 + node // 256}.{node % 256}.{1 + number // NODES}"


def pod_status(number, phase="Running"):
    path, it = pod(number)
    address = address_of(number)
    ready = [{"type": "Ready", "status": "True"}]
    status = {"phase": phase, "podIP": address, "podIPs": [{"ip": address}], "conditions": ready}
    return f"{path}/{it['metadata']['name']}/status", {"status": status}


def policy(number, turn=0):
    namespace, app = number % NAMESPACES, number // NAMESPACES % APPS
    kind = (number // NAMESPACES + number // NAMESPACES // APPS) % 4
    peers = [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": f"team{(namespace + 1) % NAMESPACES}"}}},
        {"ipBlock": {"cidr": f"172.{number % 250}.0.0/16"}},
        {"podSelector": {"matchLabels": {"app": f"app{(app + 1) % APPS}"}}},
    ]
    return f"/apis/networking.k8s.io/v1/namespaces/team{namespace}/networkpolicies", {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": f"policy-{number}"},
        "spec": {
            "podSelector": {"matchLabels": {"app": f"app{app}"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [peers[kind]], "ports": [{"port": 8000 + turn}, {"port": "http"}]}],
        },
    }


def node(number):
    return "/api/v1/nodes", {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": f"crowd{number}"},
        "spec": {"podCIDR": f"10.{1 + number // 256}.{number % 256}.0/24", "podCIDRs": [f"10.{1 + number // 256}.{number % 256}.0/24"]},
    }


def node_status(number):
    address = f"192.168.{100 + number // 250}.{1 + number % 250}"
    return f"/api/v1/nodes/crowd{number}/status", {"status": {"addresses": [{"type": "InternalIP", "address": address}]}}


def service(number):
    namespace = number % NAMESPACES
    return f"/api/v1/namespaces/team{namespace}/services", {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": f"service-{number}"},
        "spec": {"ports": [{"name": "web", "port": 80, "targetPort": 8080}]},
    }


def service_slice(number):
    """The pods of a service: three of its namespace."""
    namespace = number % NAMESPACES
    pods = [number // NAMESPACES * 3 * NAMESPACES + namespace + k * NAMESPACES for k in range(3)]
    endpoints = [
        {"addresses": [address_of(it)], "nodeName": f"crowd{it % NODES}", "conditions": {"ready": True}} for it in pods
    ]
    return f"/apis/discovery.k8s.io/v1/namespaces/team{namespace}/endpointslices", {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"service-{number}", "labels": {"kubernetes.io/service-name": f"service-{number}"}},
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    }


def namespace(number):
    return "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"team{number}"}}


def write_all(task, method, objects, kind="application/json"):
    """Writes many objects by several writers; the first fault ends it."""
    waiting, faults = queue.Queue(), []
    for it in objects:
        waiting.put(it)

    def work():
        enter(task["place"])
        server = Server(task)
        while not faults:
            try:
                path, value = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                server.send(method, path, value, kind)
            except Exception as fault:  # Told below, by the one who waits.
                faults.append(fault)

    writers = [threading.Thread(target=work) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    if faults:
        raise faults[0]


def fill(task):
    merge = "application/merge-patch+json"
    began = time.monotonic()
    write_all(task, "POST", map(namespace, range(NAMESPACES)))
    write_all(task, "POST", map(node, range(NODES)))
    write_all(task, "PATCH", map(node_status, range(NODES)), merge)
    write_all(task, "POST", map(pod, range(task["pods"])))
    write_all(task, "PATCH", map(pod_status, range(task["pods"])), merge)
    write_all(task, "POST", map(policy, range(task["policies"])))
    # A service for every three pods.
    write_all(task, "POST", map(service, range(task["pods"] // 3)))
    write_all(task, "POST", map(service_slice, range(task["pods"] // 3)))
    return {"filled_s": round(time.monotonic() - began, 1)}


class Agent:
    def __init__(self, agent):
        enter(agent["place"])
        self.agent = agent

    def metrics(self):
        with urllib.request.urlopen(self.agent["metrics"], timeout=PATIENCE) as answer:
            lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line and line[0] != "#"]
        return {name: float(value) for name, value in lines}

    def cpu(self):
        with open(f"/proc/{self.agent['process']}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self):
        with open(f"/proc/{self.agent['process']}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def at_rest(self):
        """Waits until nothing has gone out for two seconds."""
        until, before = time.monotonic() + 10 * PATIENCE, None
        while time.monotonic() < until:
            now = self.metrics()[f"{LIVE}_count"]
            if now == before:
                return
            before = now
            time.sleep(2)
        raise RuntimeError("the agent does not come to rest")


def change(task, agent, pick, rounds):
    """Makes changes one by one, each when the one before is live. What the agent says of their times."""
    server = Changer(task)
    before = agent.metrics()
    for turn in range(1, rounds + 1):
        count = agent.metrics()[f"{LIVE}_count"]
        server.send(*pick(turn))
        until = time.monotonic() + PATIENCE
        while agent.metrics()[f"{LIVE}_count"] == count:
            if time.monotonic() > until:
                raise RuntimeError(f"{pick(turn)[1]} is not live after {PATIENCE} s")
            time.sleep(0.003)
    after = agent.metrics()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    count = grown[f"{LIVE}_count"]
    buckets = [(name.split('le="')[1].split('"')[0], grown[name]) for name in after if name.startswith(f"{LIVE}_bucket")]
    within = [[float(bound) * 1e3, round(share / count, 4)] for bound, share in buckets if bound != "+Inf"]
    mean = round(grown[f"{LIVE}_sum"] / count * 1e3, 3)
    return {"count": int(count), "mean_ms": mean, "within_ms": within, "translated_ms": round(grown[TRANSLATED] / count * 1e3, 3)}


class Changer:
    """Sends from the server's namespace, whichever this thread is in."""

    def __init__(self, task):
        self.asked, self.done = queue.Queue(), queue.Queue()
        threading.Thread(target=self.work, args=(task,), daemon=True).start()

    def work(self, task):
        try:
            enter(task["place"])
            server = Server(task)
        except Exception as fault:
            self.done.put(fault)
            return
        while True:
            try:
                server.send(*self.asked.get())
                self.done.put(None)
            except Exception as fault:
                self.done.put(fault)

    def send(self, *request):
        self.asked.put(request)
        fault = self.done.get(timeout=PATIENCE)
        if fault:
            raise fault


def measure(task):
    agent = Agent(task["agent"])
    agent.at_rest()
    cpu, began = agent.cpu(), time.monotonic()
    time.sleep(20)
    idle = (agent.cpu() - cpu) / (time.monotonic() - began)
    merge = "application/merge-patch+json"

    def rule(number, turn):
        path, value = policy(number, turn)
        return "PATCH", f"{path}/{value['metadata']['name']}", {"spec": value["spec"]}, merge

    def lives(number, turn):
        return "PATCH", *pod_status(number, ["Succeeded", "Running"][turn % 2]), merge

    # The node's own pods are of two applications of the first namespace; who may speak to one are the pods of the next.
    own = [number for number in range(0, task["policies"], NAMESPACES) if number // NAMESPACES % APPS in (1, 2)]
    friends = range(1, task["pods"], NAMESPACES)
    picks = {
        "a rule of a policy of a pod here": lambda turn: rule(own[turn % len(own)], turn),
        "a pod elsewhere ends or begins": lambda turn: lives(friends[(turn - 1) // 2 % len(friends)], turn - 1),
    }
    changes = {what: change(task, agent, pick, task["rounds"]) for what, pick in picks.items()}
    return {"idle_cpu": round(idle, 4), "resident_mb": round(agent.resident()), "changes": changes}


job = json.load(sys.stdin)
print(json.dumps(measure(job) if job["agent"] else fill(job)))
