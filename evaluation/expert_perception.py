"""What the scripted expert sees: object poses, collision geometry, goals and joints, read from the simulator.

The expert is privileged: it reads the simulator's state instead of images. `Scene` is a read-only view; nothing here
moves the robot.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.expert_geometry import HeightMap, box_surface_points, yaw_of

if TYPE_CHECKING:  # importing MuJoCo for real needs the renderer to be chosen first: `libero_setup.import_libero`
    import mujoco

Goal = Sequence[str]  # a BDDL predicate and its arguments, e.g. ("in", "bowl_1", "cabinet_1_top_region")

_GRIP_SITE = "gripper0_grip_site"
_ROBOT_BASE = "robot0_base"
_CAPSULE, _CYLINDER, _BOX, _MESH = 3, 5, 6, 7  # mujoco.mjtGeom
_FINGER_JOINTS = ("gripper0_finger_joint1", "gripper0_finger_joint2")
_FREE_JOINT = 6  # degrees of freedom
_FALLING = 0.1  # metres per second


class Scene:
    """Read-only view of a LIBERO problem.

    Args:
        domain (`libero.libero.envs.bddl_base_domain.BDDLBaseDomain`): the robosuite environment of the task, after
            its reset. The scene follows its simulation; make a new one after each reset.
    """

    def __init__(self, domain: Any):
        self.domain = domain
        self._grip_site = self.model.site(_GRIP_SITE).id
        self.base_position = self.data.xpos[self.model.body(_ROBOT_BASE).id].copy()
        self._children: dict[int, list[int]] = {}
        for body in range(1, self.model.nbody):
            self._children.setdefault(int(self.model.body_parentid[body]), []).append(body)
        names = [name for name in {**domain.objects_dict, **domain.fixtures_dict} if name in domain.obj_body_id]
        self._collision_geoms = {name: self.moving_geoms(domain.obj_body_id[name]) for name in names}
        self._surface_points: dict[int, np.ndarray] = {}
        self.table_height = self._measure_table()

    def _measure_table(self) -> float:
        """Height of the surface: the lowest object, kept near the nominal height of the arena."""
        nominal = float(self.domain.workspace_offset[2])
        lowest = [self.points_of(name)[:, 2].min() for name in self.domain.objects_dict if self.has(name)]
        return float(min(max(min(lowest), nominal - 0.02), nominal + 0.05)) if lowest else nominal

    @property
    def model(self) -> "mujoco.MjModel":
        """The MuJoCo model."""
        return self.domain.sim.model._model

    @property
    def data(self) -> "mujoco.MjData":
        """The MuJoCo state."""
        return self.domain.sim.data._data

    # Robot

    @property
    def grip_position(self) -> np.ndarray:
        """World position of the grip site, `(3,)` metres."""
        return self.data.site_xpos[self._grip_site].copy()

    @property
    def grip_rotation(self) -> np.ndarray:
        """World rotation of the grip site, `(3, 3)`."""
        return self.data.site_xmat[self._grip_site].reshape(3, 3).copy()

    @property
    def grip_yaw(self) -> float:
        """Yaw of the finger axis, radians."""
        return yaw_of(self.grip_rotation)

    @property
    def finger_opening(self) -> float:
        """Distance between the finger pads, metres."""
        return float(sum(abs(self.domain.sim.data.get_joint_qpos(joint)) for joint in _FINGER_JOINTS))

    # Objects

    def has(self, name: str) -> bool:
        """Whether the scene holds an object or fixture of this name that has a body."""
        return name in self._collision_geoms

    @property
    def names(self) -> tuple[str, ...]:
        """Objects and fixtures that have a body."""
        return tuple(self._collision_geoms)

    def geoms_of(self, name: str) -> list[int]:
        """Collision geoms of an object or fixture, ids in ascending order."""
        return list(self._collision_geoms[name])

    def is_object(self, name: str) -> bool:
        """Whether the name is a movable object."""
        return name in self.domain.objects_dict

    def position_of(self, name: str) -> np.ndarray:
        """World position of an object's body origin, `(3,)` metres."""
        return self.data.xpos[self.domain.obj_body_id[name]].copy()

    def is_falling(self) -> bool:
        """Whether an object still falls: some scenes begin with objects half a metre above the table."""
        bodies = [self.domain.obj_body_id[name] for name in self.names if self.is_object(name)]
        free = [self.model.body_dofadr[body] for body in bodies if self.model.body_dofnum[body] == _FREE_JOINT]
        return any(self.data.qvel[first + 2] < -_FALLING for first in free)

    def points_of(self, name: str) -> np.ndarray:
        """Points on the collision geometry of an object or fixture.

        Args:
            name (`str`): its BDDL name.

        Returns:
            `np.ndarray` of shape `(N, 3)`: world coordinates.
        """
        return self.points_of_geoms(self._collision_geoms[name])

    def points_of_geoms(self, geoms: Sequence[int]) -> np.ndarray:
        """Points on some geoms.

        Args:
            geoms (`Sequence[int]`): MuJoCo geom ids.

        Returns:
            `np.ndarray` of shape `(N, 3)`: world coordinates; empty for no geoms.
        """
        if not len(geoms):
            return np.zeros((0, 3))
        data = self.data
        return np.concatenate(
            [self._local_points(g) @ data.geom_xmat[g].reshape(3, 3).T + data.geom_xpos[g] for g in geoms]
        )

    def _local_points(self, geom: int) -> np.ndarray:
        """Points of one geom in its own frame: mesh vertices, or the faces of the enclosing box."""
        if geom not in self._surface_points:
            model, size, kind = self.model, self.model.geom_size[geom], self.model.geom_type[geom]
            if kind == _MESH:
                mesh = model.geom_dataid[geom]
                first = model.mesh_vertadr[mesh]
                points = model.mesh_vert[first : first + model.mesh_vertnum[mesh]].astype(float)
            elif kind == _BOX:
                points = box_surface_points(np.array(size))
            elif kind in (_CAPSULE, _CYLINDER):
                points = box_surface_points(np.array([size[0], size[0], size[1]]))
            else:
                points = box_surface_points(np.full(3, size[0]))
            self._surface_points[geom] = points
        return self._surface_points[geom]

    def moving_geoms(self, body: int) -> list[int]:
        """Collision geoms of a body and of everything attached to it.

        Args:
            body (`int`): MuJoCo body id.

        Returns:
            `list[int]`: geom ids in ascending order.
        """
        bodies, queue = set(), [body]
        while queue:
            current = queue.pop()
            bodies.add(current)
            queue.extend(self._children.get(current, []))
        model = self.model
        return [
            geom
            for geom in range(model.ngeom)
            if model.geom_bodyid[geom] in bodies and (model.geom_contype[geom] or model.geom_conaffinity[geom])
        ]

    def height_map(
        self, exclude: Iterable[str] = (), spread: int = 1, obstacles: np.ndarray | None = None
    ) -> HeightMap:
        """Height map of the scene, the robot left out.

        Args:
            exclude (`Iterable[str]`): names of objects to leave out.
            spread (`int`): cells by which obstacles grow sideways.
            obstacles (`np.ndarray` of shape `(N, 3)`, *optional*): further points to keep clear of.

        Returns:
            `HeightMap`.
        """
        height_map = HeightMap(self.table_height)
        left_out = set(exclude)
        for name in self._collision_geoms:
            if name not in left_out:
                height_map.raise_to(self.points_of(name))
        if obstacles is not None:
            height_map.raise_to(obstacles)
        height_map.spread(spread)
        return height_map

    # Goals

    @property
    def goals(self) -> list[list[str]]:
        """The task's goal predicates, as its BDDL states them."""
        return [list(goal) for goal in self.domain.parsed_problem["goal_state"]]

    def satisfied(self, goal: Goal) -> bool:
        """Whether a predicate holds now."""
        return bool(self.domain._eval_predicate(goal))

    def target_position(self, reference: str, name: str) -> np.ndarray:
        """Where an object's origin should come down so that it is on or in the reference.

        Objects that share one region are set side by side along their shorter edge.

        Args:
            reference (`str`): an object or a BDDL region.
            name (`str`): the object to be placed.

        Returns:
            `np.ndarray` of shape `(2,)`: world x, y.
        """
        if self.is_object(reference):
            return self.position_of(reference)[:2]
        target = self.data.site_xpos[self.model.site(reference).id][:2].copy()
        sharing = [goal[1] for goal in self.goals if goal[0] == "on" and len(goal) > 2 and goal[2] == reference]
        if name in sharing and len(sharing) > 1:
            extent = np.ptp(self.points_of(name)[:, :2], axis=0)
            axis = int(np.argmin(extent))
            target[axis] += (sharing.index(name) - (len(sharing) - 1) / 2) * (extent[axis] + 0.012)
        return target

    def is_flat(self, name: str) -> bool:
        """Whether an object is too low and wide to pinch: it has to be pushed."""
        points = self.points_of(name)
        return bool(np.ptp(points[:, 2]) < 0.03 and np.ptp(points[:, 0]) > 0.11)
