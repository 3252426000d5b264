"""Small LeRobot data sets, as LeRobot's own code lays them out: versions 2.1 and 3.0, videos or pictures in tables.

Step t of episode e shows a grey that says which it is, so that a frame off by one is seen even after compression.
"""

import io
import json

import av
import datasets
import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

FPS, SIZE = 20, 64
LENGTHS, TASKS = (7, 5, 6), ("lift the cup", "push the plate", "lift the cup")
AGENTVIEW, WRIST = "observation.images.image", "observation.images.wrist_image"


def grey_of(episode, step, camera=AGENTVIEW):
    return 30 + 60 * episode + 8 * step + 3 * (camera == WRIST)


def actions_of(episode):
    return np.random.default_rng(episode).uniform(-1, 1, (LENGTHS[episode], 7)).astype(np.float32)


def states_of(episode):
    return np.random.default_rng(100 + episode).normal(size=(LENGTHS[episode], 8)).astype(np.float32)


def frames_of(episode, camera=AGENTVIEW):
    """A grey picture per step, with a lighter top left corner that says which way up it is."""
    frames = np.empty((LENGTHS[episode], SIZE, SIZE, 3), np.uint8)
    for step, frame in enumerate(frames):
        frame[:] = grey_of(episode, step, camera)
        frame[: SIZE // 4, : SIZE // 4] += 40
    return frames


def write_video(path, frames, codec="libx264", fps=FPS, options=None):
    """As LeRobot encodes: a key frame every second frame, so that frames lie between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"crf": "10", "g": "2"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _png(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _steps(episode, first, pictures, names):
    length = LENGTHS[episode]
    columns = {
        names["state"]: list(states_of(episode)),
        names["action"]: list(actions_of(episode)),
        "timestamp": (np.arange(length) / FPS).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": first + np.arange(length),
        "task_index": np.full(length, sorted(set(TASKS)).index(TASKS[episode])),
    }
    if pictures == "image":
        columns |= {names[key]: [_png(frame) for frame in frames_of(episode, key)] for key in (AGENTVIEW, WRIST)}
    return columns


def _write_table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {
            key: datasets.Image()
            if isinstance(value[0], dict)
            else datasets.Sequence(datasets.Value("float32"), length=len(value[0]))
            if np.ndim(value[0])
            else datasets.Value("float32" if key == "timestamp" else "int64")
            for key, value in columns.items()
        }
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))


def _describe(version, pictures, names):
    shapes = {names["state"]: [8], names["action"]: [7]}
    features = {key: {"dtype": "float32", "shape": shape, "names": None} for key, shape in shapes.items()}
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
    for key in (AGENTVIEW, WRIST):
        features[names[key]] = {"dtype": pictures, "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channel"]}
    old = version != "v3.0"
    chunk, file = (
        ("{episode_chunk:03d}", "episode_{episode_index:06d}")
        if old
        else ("{chunk_index:03d}", "file-{file_index:03d}")
    )
    videos = (
        f"videos/chunk-{chunk}/{{video_key}}/{file}.mp4" if old else f"videos/{{video_key}}/chunk-{chunk}/{file}.mp4"
    )
    return {
        "codebase_version": version,
        "robot_type": "panda",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": 2,
        "chunks_size": 2 if old else 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": f"data/chunk-{chunk}/{file}.parquet",
        "video_path": videos if pictures == "video" else None,
        "features": features,
    }


def write_data_set(root, version="v2.1", pictures="video", codec="libx264", **names):
    """Write a data set of three episodes; `names` renames features."""
    names = {key: key for key in (AGENTVIEW, WRIST)} | {"state": "observation.state", "action": "action"} | names
    (root / "meta").mkdir(parents=True)
    info = _describe(version, pictures, names)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    if version == "v3.0":
        _write_version_3(root, info, pictures, codec, names)
    else:
        _write_version_2(root, info, pictures, codec, names)
    return root


def _write_version_2(root, info, pictures, codec, names):
    meta, first = root / "meta", 0
    tasks = [{"task_index": number, "task": task} for number, task in enumerate(sorted(set(TASKS)))]
    episodes = [{"episode_index": e, "tasks": [TASKS[e]], "length": length} for e, length in enumerate(LENGTHS)]
    for name, rows in (("tasks", tasks), ("episodes", episodes)):
        (meta / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for episode, length in enumerate(LENGTHS):
        place = {"episode_index": episode, "episode_chunk": episode // info["chunks_size"]}
        _write_table(root / info["data_path"].format(**place), _steps(episode, first, pictures, names))
        first += length
        for camera in (AGENTVIEW, WRIST) if pictures == "video" else ():
            path = root / info["video_path"].format(**place, video_key=names[camera])
            write_video(path, frames_of(episode, camera), codec)


def _write_version_3(root, info, pictures, codec, names):
    """Episodes 0 and 1 share a table and a video, episode 2 has the next."""
    parquet.write_table(
        pyarrow.table({"task_index": [0, 1], "__index_level_0__": sorted(set(TASKS))}), root / "meta" / "tasks.parquet"
    )
    rows = []
    for file, episodes in enumerate(([0, 1], [2])):
        starts = np.concatenate([[0], np.cumsum([LENGTHS[e] for e in episodes])])
        place = {"chunk_index": 0, "file_index": file}
        steps = [_steps(e, int(start), pictures, names) for e, start in zip(episodes, starts, strict=False)]
        columns = {key: [value for part in steps for value in part[key]] for key in steps[0]}
        _write_table(root / info["data_path"].format(**place), columns)
        for camera in (AGENTVIEW, WRIST) if pictures == "video" else ():
            path = root / info["video_path"].format(**place, video_key=names[camera])
            write_video(path, np.concatenate([frames_of(e, camera) for e in episodes]), codec)
        for e, start in zip(episodes, starts, strict=False):
            row = {"episode_index": e, "tasks": [TASKS[e]], "length": LENGTHS[e]}
            row |= {f"data/{key}": value for key, value in place.items()}
            for camera in (AGENTVIEW, WRIST) if pictures == "video" else ():
                row |= {f"videos/{names[camera]}/{key}": value for key, value in place.items()}
                row[f"videos/{names[camera]}/from_timestamp"] = float(start / FPS)
                row[f"videos/{names[camera]}/to_timestamp"] = float((start + LENGTHS[e]) / FPS)
            rows.append(row)
    path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
