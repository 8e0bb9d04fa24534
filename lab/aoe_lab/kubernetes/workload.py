"""A Deployment's containers as processes of this host: what a cluster would run, where there is no kubelet.

Owns: their start from what the API server holds (programs, arguments, environment, service account), so that a wrong
flag or a missing right shows in seconds. They run in the lab's network and end with it.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aoe_lab import process
from aoe_lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from aoe_lab.kubernetes.control_plane import ControlPlane
    from aoe_lab.process import Child

_POD_S = 60.0


@dataclass(slots=True, kw_only=True)
class Workload:
    """Running containers of one pod; `directory` stands in for its emptyDirs and has a log of each."""

    directory: Path
    children: dict[str, Child]

    @classmethod
    def start(
        cls,
        plane: ControlPlane,
        deployment: str,
        *,
        namespace: str,
        programs: Mapping[str, Sequence[str | Path]],
        directory: Path,
    ) -> Self:
        """Start the containers of a Deployment; `programs`: what a container's name (or its command's) stands for.

        Raises: LabError when the API server makes no pod of it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        pod = _first_pod(plane, deployment, namespace)
        spec = pod["spec"]
        kubeconfig = plane.bearer(spec["serviceAccountName"], namespace=namespace, inside=True)
        started = cls(directory=directory, children={})
        for container in spec["containers"]:
            environment = {one["name"]: _value(one, pod) for one in container.get("env", ())}
            command = container.get("command", [])
            program = programs[command[0] if command else container["name"]]
            words = [_substitute(word, environment) for word in (*command[1:], *container.get("args", ()))]
            for mount in container.get("volumeMounts", ()):
                words = [word.replace(f"{mount['mountPath']}/", f"{directory}/") for word in words]
            started.children[container["name"]] = process.start(
                [*plane.lab.network.enter, *program, *words, f"--kubeconfig={kubeconfig}"],
                output=directory / f"{container['name']}.log",
                env=environment,
            )
        return started

    def require_running(self) -> None:
        """Raises: LabError with the end of the log of what has ended."""
        for name, child in self.children.items():
            if child.poll() is not None:
                log = (self.directory / f"{name}.log").read_text(errors="replace")[-3000:]
                raise LabError(f"{name} ended with {child.returncode}; the end of its log:\n{log}")

    def stop(self) -> None:
        """End it, as kubelet does."""
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _first_pod(plane: ControlPlane, deployment: str, namespace: str) -> dict[str, Any]:
    """Return a pod that the Deployment's controller made; a real one, since programs look themselves up."""
    deadline = time.monotonic() + _POD_S
    while time.monotonic() < deadline:
        found = json.loads(plane.kubectl("get", "pods", f"--namespace={namespace}", "--output=json").stdout)["items"]
        for pod in found:
            if pod["metadata"]["name"].startswith(f"{deployment}-"):
                return dict(pod)
        time.sleep(0.3)
    said = plane.kubectl("describe", "deployments,replicasets", f"--namespace={namespace}", check=False).stdout
    raise LabError(f"no pod was made of deployment {deployment} within {_POD_S:g} s:\n{said[-3000:]}")


def _value(variable: dict[str, Any], pod: dict[str, Any]) -> str:
    if "value" in variable:
        return str(variable["value"])
    place: Any = pod
    for step in variable["valueFrom"]["fieldRef"]["fieldPath"].split("."):
        place = place.get(step, "")
    return str(place)


def _substitute(word: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), word)
