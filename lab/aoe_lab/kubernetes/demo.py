"""The main job on a cluster, shown: `python -m aoe_lab.kubernetes.demo`.

helm install, a claim, a pod that writes; the storage machine loses power under it and comes back; the pod reads what it
wrote. Every claim the story makes is checked, and one that does not hold ends it with exit code 1.
"""

from __future__ import annotations

import sys
import time

from aoe_lab.errors import LabError
from aoe_lab.kubernetes.cluster import Cluster
from aoe_lab.kubernetes.helm import NAMESPACE
from aoe_lab.kubernetes.images import WORKLOAD
from aoe_lab.patience import OUTLASTING_DEADSECS
from aoe_lab.story import Story, StoryError

MANIFEST = f"""
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 256Mi}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: writer}}
spec:
  nodeSelector: {{kubernetes.io/hostname: NODE}}
  terminationGracePeriodSeconds: 1
  containers:
  - name: writer
    image: {WORKLOAD}
    imagePullPolicy: Never
    # One fsync'ed record after the other; the last acknowledged one is in the pod's memory.
    command:
    - sh
    - -c
    - |
      i=0
      while true; do
        i=$((i+1))
        echo record $i | dd of=/data/log oflag=append conv=notrunc,fsync status=none && echo $i > /tmp/acknowledged
      done
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes:
  - {{name: data, persistentVolumeClaim: {{claimName: data}}}}
"""


def main() -> int:
    """Tell the story on machines of its own; they are gone afterwards, however it ends."""
    story = Story()
    try:
        with story.step("Boot a storage machine and a compute machine, join both to a control plane"):
            cluster = Cluster.start(storage=1, compute=1, name="demo", dead_s=OUTLASTING_DEADSECS)
        with cluster:
            _tell(story, cluster)
    except KeyboardInterrupt:
        print("\ninterrupted; the machines are gone", file=sys.stderr)
        return 130
    except (StoryError, LabError) as error:
        print(f"\nThe story breaks off here: {error}", file=sys.stderr)
        return 1
    story.sum_up()
    return 0


def _tell(story: Story, cluster: Cluster) -> None:
    kubectl = cluster.plane.kubectl
    (storage,), (compute,) = cluster.storage_machines, cluster.compute_machines
    story.tell(kubectl("get", "nodes").stdout)
    with story.step("helm install aoe-csi charts/aoe-csi"):
        cluster.install()
        cluster.await_ready()
        story.tell(kubectl("get", "pods", f"-n{NAMESPACE}", "-owide", "--no-headers").stdout)
        story.tell(kubectl("get", "aoenodes").stdout)
    with story.step(f"kubectl apply: a claim of 256 MiB, and a pod on {compute.name} that writes to it"):
        kubectl("apply", "-f-", stdin=MANIFEST.replace("NODE", compute.name))
        cluster.await_(lambda: None if _acknowledged(cluster) > 3 else "nothing is written yet", "the pod to write")
        story.tell(kubectl("get", "pvc,aoevolumes").stdout)
        story.tell(storage.run("pgrep -ax vblade").stdout)
        story.tell(compute.run("lsblk --noheadings -o NAME,SIZE,SERIAL,MOUNTPOINT | grep etherd").stdout)
    with story.step(f"Pull the power of {storage.name} under the writer"):
        storage.power_cut()
        time.sleep(3)
        stalled = _acknowledged(cluster)
        time.sleep(3)
        later = _acknowledged(cluster)
        story.require(0 < stalled <= later <= stalled + 1, f"the pod waits at record {stalled}, it gets no error")
    with story.step(f"Power {storage.name} on again: the export comes back by itself"):
        storage.boot()
        storage.wait_ready()
        cluster.await_(
            lambda: None if _acknowledged(cluster) > stalled + 3 else "it still waits", "the pod to write on"
        )
        acknowledged = _acknowledged(cluster)
        compute.drop_caches()
        kept = int(_in_pod(cluster, "grep -c ^record /data/log"))
        story.require(kept >= acknowledged, f"all {acknowledged} acknowledged records are there")
        restarts = kubectl("get", "pod", "writer", "-ojsonpath={.status.containerStatuses[0].restartCount}").stdout
        story.require(restarts == "0", "the pod never noticed: 0 restarts")
    with story.step("Delete the pod; another one reads what it wrote"):
        kubectl("delete", "pod", "writer", "--timeout=120s", timeout_s=150)
        reader = MANIFEST.replace("NODE", compute.name).replace("name: writer", "name: reader")
        begin, end = reader.index("    command:"), reader.index("    volumeMounts:")
        kubectl("apply", "-f-", stdin=f"{reader[:begin]}    command: [sleep, '1000000']\n{reader[end:]}")
        kubectl("wait", "--for=condition=Ready", "pod/reader", "--timeout=300s", timeout_s=330)
        found = int(_in_pod(cluster, "grep -c ^record /data/log", "reader"))
        story.require(found >= kept, f"{found} records are there, after {kept} that were seen")
    with story.step("Delete pod and claim: nothing is left"):
        kubectl("delete", "pod/reader", "pvc/data", "--timeout=120s", timeout_s=150)
        cluster.await_(lambda: kubectl("get", "aoevolumes", "-oname").stdout or None, "the volume to be gone")
        left = storage.run("lvs --noheadings -o lv_name data").stdout.split()
        story.require(left == ["thinpool"], "the volume group has its thin pool, and nothing else")


def _acknowledged(cluster: Cluster) -> int:
    """The last record the pod was told is written; 0 while it does not run."""
    return int(_in_pod(cluster, "cat /tmp/acknowledged 2>/dev/null || echo 0") or 0)


def _in_pod(cluster: Cluster, command: str, pod: str = "writer") -> str:
    return cluster.plane.kubectl("exec", pod, "--", "sh", "-c", command, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
