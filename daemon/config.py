"""The configuration file: TOML, frozen, unknown keys refused; an error names file, key, value and remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lineward.daemon.config_faults import explain
from lineward.daemon.endpoint import CREDENTIAL
from lineward.models.verdict import Thresholds

TopicLevel = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"nobody knows the home folder {path.parts[0]}; write the whole path") from error


def _model_at_home(model: Path) -> Path:
    return _at_home(model) if model.suffix else model  # a product of the model store has none


def _producer_at_home(producer: str) -> str:
    return str(_at_home(Path(producer))) if producer.endswith(".cti") else producer


FilePath = Annotated[Path, AfterValidator(_at_home)]
ModelPath = Annotated[Path, AfterValidator(_model_at_home)]
Producer = Annotated[str, AfterValidator(_producer_at_home)]


class ConfigError(ValueError):
    """The configuration cannot be used. The message has one line per fault: file, key, value and remedy."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Station(_Section):
    """Names this inspection station; the base of every MQTT topic is ``lineward/<site>/<line>/<name>``."""

    site: TopicLevel = Field("plant", description="Site: one level of the MQTT topic.")
    line: TopicLevel = Field("line1", description="Production line: one level of the MQTT topic.")
    name: TopicLevel = Field("cam1", description="Station: one level of the MQTT topic.")

    @property
    def base_topic(self) -> str:
        """Return the base of every topic of this station."""
        return f"lineward/{self.site}/{self.line}/{self.name}"


class _Camera(_Section):
    trigger: Literal["free_run", "software", "hardware"] = Field(
        "free_run",
        description="What starts an exposure: the camera itself, a command, or an electrical signal.",
    )
    settings: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="GenICam features, written in this order at every opening and read back.",
    )
    silence_s: float = Field(
        2.0, gt=0.2, le=60, description="Seconds without a sign of life after which the camera process is replaced."
    )

    silent_s: float = Field(
        10.0, gt=0, le=3600, description="Seconds without a frame, in free run, after which the camera is opened anew."
    )
    memory_mb: float = Field(
        1024, ge=100, description="Size in megabytes from which the camera process is replaced between two parts."
    )

    def driver_options(self) -> dict[str, Any]:
        """Return the keyword arguments of the driver, ready to cross to the camera process."""
        return self.model_dump(exclude={"driver", "settings", "silence_s", "silent_s", "memory_mb"})


class SimulatedCamera(_Camera):
    """A simulated camera above a simulated line."""

    driver: Literal["simulated"] = Field(description="The simulated camera.")
    product: str = Field("bracket", description="Which simulated product passes by.")
    seed: int = Field(0, ge=0, description="Same seed, same parts, same frames.")
    width: int = Field(640, ge=32, le=8192, description="Image width in pixels.")
    height: int = Field(512, ge=32, le=8192, description="Image height in pixels.")
    pixel_format: Literal["Mono8", "RGB8"] = Field("Mono8", description="Grey or colour pictures.")
    rate_hz: float = Field(5.0, ge=0, le=1000, description="Parts per second; 0: as fast as they are taken.")
    defect_rate: float = Field(0.1, ge=0, le=1, description="Share of defective parts.")
    faults: list[str | dict[str, str | int | float]] = Field(
        default_factory=list, description="Scripted faults, as the reference lists them."
    )
    start_index: int = Field(0, ge=0, description="Index of the first part.")
    limit: int | None = Field(None, ge=1, description="Stop before the part of this index; empty: go on for ever.")
    prerender: int = Field(0, ge=0, le=256, description="Frames rendered at start and replayed (benchmarks).")


class FolderCamera(_Camera):
    """Replays a folder of image files."""

    driver: Literal["folder"] = Field(description="Replay of image files.")
    folder: FilePath = Field(
        Path("images"), description="Folder of PNG, JPEG, TIFF or BMP files, read in sorted order."
    )
    loop: bool = Field(False, description="Begin again after the last file.")
    rate_hz: float = Field(0.0, ge=0, le=1000, description="Files per second; 0: as fast as taken, none dropped.")
    significant_bits: int = Field(16, ge=8, le=16, description="Bits that carry the picture in a 16-bit file.")


class GenicamCamera(_Camera):
    """An industrial camera behind a GenTL producer."""

    driver: Literal["genicam"] = Field(description="A GenICam camera through a GenTL producer.")
    producers: list[Producer] = Field(
        default_factory=list,
        description='GenTL producers (.cti files); "viky" is the simulator inside the genicam package; '
        "empty: those in GENICAM_GENTL64_PATH, which a service sees only if its unit sets it.",
    )
    serial: str = Field("", description="Serial number of the camera.")
    user_id: str = Field("", description="User-defined name of the camera, instead of its serial number.")
    buffers: int = Field(6, ge=2, le=64, description="Frames the producer can hold while the line is busy.")

    @model_validator(mode="after")
    def _one_selector(self) -> GenicamCamera:
        if bool(self.serial) == bool(self.user_id):
            raise ValueError('give either serial = "..." or user_id = "..."; `lineward cameras` lists them')
        return self


class AravisCamera(_Camera):
    """A GigE Vision or USB3 Vision camera through Aravis, without a vendor's producer."""

    driver: Literal["aravis"] = Field(description="A GigE Vision or USB3 Vision camera through Aravis.")
    serial: str = Field("", description="Serial number of the camera.")
    user_id: str = Field("", description="User-defined name of the camera, instead of its serial number.")
    address: str = Field("", description="IP address of a GigE camera, instead of both: no search, faster to open.")
    buffers: int = Field(6, ge=2, le=64, description="Frames the driver can hold while the line is busy.")

    @model_validator(mode="after")
    def _one_selector(self) -> AravisCamera:
        if sum(map(bool, (self.serial, self.user_id, self.address))) != 1:
            raise ValueError('give exactly one of serial = "...", user_id = "..." and address = "..."')
        return self


class Inspection(_Section):
    """How parts are judged."""

    model: ModelPath = Field(description="A model bundle (.lward file), or the name of a product in the model store.")
    deadline_ms: int = Field(500, ge=5, le=600_000, description="Milliseconds from trigger to answer.")
    providers: list[str] = Field(
        default_factory=lambda: ["CPUExecutionProvider"],
        min_length=1,
        description="ONNX Runtime execution providers in order of wish; a fallback raises an alarm.",
    )
    threads: int = Field(2, ge=1, le=64, description="Threads of ONNX Runtime within one judgement.")


class RecipeThresholds(_Section):
    """Thresholds of a recipe instead of those of its model; raise the band, and the model's promise is void."""

    pass_below: float = Field(ge=0, le=1, description="A defect probability below this is a pass.")
    fail_from: float = Field(ge=0, le=1, description="A defect probability from this on is a fail.")
    review_anomaly_from: float = Field(
        1.0, ge=0, le=1, description="An anomaly from this on goes to review although it would pass."
    )

    @model_validator(mode="after")
    def _in_order(self) -> RecipeThresholds:
        if self.pass_below > self.fail_from:
            raise ValueError("pass_below must not be above fail_from")
        return self

    def thresholds(self) -> Thresholds:
        """Return them as the verdict wants them."""
        return Thresholds(self.pass_below, self.fail_from, self.review_anomaly_from)


Fraction = Annotated[float, Field(ge=0, le=1)]


class Recipe(_Section):
    """One more product that this station can be changed over to, while it runs."""

    model: ModelPath = Field(description="A model bundle (.lward file), or the name of a product in the model store.")
    deadline_ms: int | None = Field(
        None, ge=5, le=600_000, description="Milliseconds from trigger to answer; empty: inspection.deadline_ms."
    )
    settings: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="GenICam features, written after those of [camera.settings]."
    )
    roi: tuple[Fraction, Fraction, Fraction, Fraction] | None = Field(
        None, description="Region of interest x, y, width, height as fractions of the image; empty: the model's own."
    )
    thresholds: RecipeThresholds | None = Field(None, description="Thresholds; empty: the model's own.")

    @field_validator("roi")
    @classmethod
    def _inside(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (min(value[2:]) <= 0 or value[0] + value[2] > 1 or value[1] + value[3] > 1):
            raise ValueError("must lie inside the image: x + width and y + height at most 1, width and height above 0")
        return value


class Tls(_Section):
    """TLS to the broker; the host name is always checked."""

    ca_file: FilePath | None = Field(
        None,
        description="Certificate of the authority that signed the broker's, the only one trusted; empty: the system's.",
    )
    cert_file: FilePath | None = Field(None, description="Client certificate, as a file or `credential:NAME`.")
    key_file: FilePath | None = Field(
        None, description="Key of the client certificate, as a file or `credential:NAME`."
    )

    @model_validator(mode="after")
    def _pair(self) -> Tls:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both or neither")
        return self


class Mqtt(_Section):
    """The broker that the line listens to."""

    host: str = Field("127.0.0.1", min_length=1, description="Host name or address of the broker.")
    port: int = Field(1883, ge=1, le=65535, description="TCP port of the broker; with TLS usually 8883.")
    protocol: Literal["3.1.1", "5"] = Field("5", description="MQTT version.")
    client_id: str = Field(
        "", max_length=64, description="Client id, unique on the broker; empty: made from the station's names."
    )
    username: str | None = Field(None, description="User name at the broker.")
    password_file: FilePath | None = Field(
        None,
        description="File that holds the password, or `credential:NAME` for a credential of the systemd unit; "
        "never write the password here.",
    )
    keepalive_s: int = Field(15, ge=5, le=600, description="Keep-alive interval in seconds.")
    tls: Tls | None = Field(None, description="TLS settings; empty: plain TCP.")


class Storage(_Section):
    """Where results and images are kept."""

    root: FilePath = Field(Path("/var/lib/lineward"), description="Folder of ledger, outbox, images and models.")
    max_gb: float = Field(
        20, gt=0, le=100_000, description="Quota of all kept images in gigabytes; the oldest go first."
    )
    audit_gb: float = Field(
        2, ge=0, le=100_000, description="Share of max_gb that images of passed parts (review.audit_share) may take."
    )
    thumbnails_gb: float = Field(
        0.5,
        ge=0,
        le=100_000,
        description="Quota of the small pictures of passed parts (review.thumbnail_share), beside max_gb; 0: none.",
    )
    ledger_rows: int = Field(
        2_000_000, ge=1000, description="Answers kept in the ledger, about 1.2 kB each; the oldest go first."
    )
    outbox_mb: float = Field(
        512,
        ge=1,
        description="Megabytes of results that may wait for the broker; beyond, the oldest stay in the ledger only.",
    )


class Review(_Section):
    """Which frames are kept for a person to look at, and the page where they are looked at."""

    keep_per_hour: int = Field(200, ge=0, description="At most this many images an hour.")
    keep_fails: bool = Field(False, description="Keep the images of failed parts too, within the same budget.")
    audit_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of passed parts whose images are kept too, drawn at random: how escapes are found.",
    )
    thumbnail_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of passed parts of which a small picture is kept, drawn at random: what the line lets "
        "through, at a glance.",
    )
    thumbnail_px: int = Field(160, ge=32, le=640, description="Pixels on the longer side of such a small picture.")
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address that the review page listens on; 0.0.0.0: every network card."
    )
    port: int = Field(8430, ge=1, le=65535, description="TCP port of the review page.")
    names: list[str] = Field(
        default_factory=list,
        description="Host names by which browsers may call the page, besides this machine's addresses.",
    )
    cert_file: FilePath | None = Field(None, description="Certificate of the review page (PEM); empty: no TLS.")
    key_file: FilePath | None = Field(None, description="Key of that certificate (PEM).")
    session_minutes: float = Field(
        30, ge=1, le=1440, description="Minutes without a touch after which a technician or engineer is signed out."
    )
    operator_hours: float = Field(
        12, ge=0.1, le=168, description="Hours after which an operator, who can change nothing, is signed out."
    )
    base_data: FilePath | None = Field(
        None,
        description="Images the product was first trained on (good/, defect/TYPE/, groups.csv), or a folder with one "
        "such folder for each product: a new training uses them together with what was labelled on the page.",
    )
    upload_mb: int = Field(2048, ge=1, le=65536, description="Largest ZIP file that may be imported, in megabytes.")
    second_reader_share: float = Field(
        0.1, ge=0, le=0.5, description="Share of shown parts that another person has labelled already."
    )
    blind_repeat_share: float = Field(
        0.05, ge=0, le=0.5, description="Share of shown parts that the same person has labelled before."
    )

    @model_validator(mode="after")
    def _pair(self) -> Review:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both or neither")
        return self


class Watch(_Section):
    """What pictures and scores were like at commissioning is learnt from the first parts, and watched from then on."""

    enabled: bool = Field(True, description="Watch pictures and scores, and raise alarms when they drift.")
    commission_parts: int = Field(
        2000, ge=50, le=5000, description="Parts from which is learnt what is normal, for each model."
    )
    guard: bool = Field(
        True, description="A picture that does not look like the product makes its part undecided (`wrong_product`)."
    )


class Metrics(_Section):
    """Figures for Prometheus; off unless a port is given."""

    host: str = Field("127.0.0.1", min_length=1, description="Address that the figures are served on.")
    port: int = Field(0, ge=0, le=65535, description="TCP port of `/metrics`, usually 9842; 0: off.")


class Log(_Section):
    """What the operator reads."""

    parts: bool = Field(True, description="One line per part at level INFO.")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe level shown.")


class Config(_Section):
    """The whole configuration of one station."""

    station: Station = Field(default_factory=Station, description="Where this station stands.")
    camera: Annotated[SimulatedCamera | FolderCamera | GenicamCamera | AravisCamera, Field(discriminator="driver")] = (
        Field(description="The camera and how it is triggered.")
    )
    inspection: Inspection = Field(description="The model and the deadline.")
    recipes: dict[TopicLevel, Recipe] = Field(
        default_factory=dict, description="Products to change over to; [inspection] itself is the recipe `default`."
    )
    mqtt: Mqtt = Field(default_factory=Mqtt, description="The broker.")
    storage: Storage = Field(default_factory=Storage, description="The disk.")
    review: Review = Field(default_factory=Review, description="Frames kept for review, and the review page.")
    watch: Watch = Field(default_factory=Watch, description="Image health and drift.")
    metrics: Metrics = Field(default_factory=Metrics, description="Figures for Prometheus.")
    log: Log = Field(default_factory=Log, description="The log.")

    @model_validator(mode="after")
    def _every_recipe_says_all(self) -> Config:
        if "default" in self.recipes:
            raise ValueError('recipes.default: "default" is the recipe of [inspection]; choose another name')
        features = {name for recipe in self.recipes.values() for name in recipe.settings}
        for feature in sorted(features - set(self.camera.settings)):
            raise ValueError(
                f"recipes: {feature} is set by a recipe but not in [camera.settings], so it would stay as that recipe "
                f"left it; add {feature} there"
            )
        return self

    @field_validator("camera", mode="before")
    @classmethod
    def _driver_named(cls, value: Any) -> Any:
        if isinstance(value, dict) and "driver" not in value:
            raise ValueError('driver is missing; add driver = "simulated", "folder", "genicam" or "aravis"')
        return value


def load_config(path: Path) -> Config:
    """Read and check a configuration file; relative paths in it are relative to its folder.

    Raises
    ------
    ConfigError
        The file is missing, is not TOML, or holds a wrong key or value.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give the file with --config FILE") from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        twice = "Cannot overwrite" in str(error) or "Cannot declare" in str(error)
        what = "a key or table is given twice, keep one" if twice else "is not valid TOML"
        raise ConfigError(f"{path}: {what}: {error}") from error
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        lines = dict.fromkeys(f"{path}: {explain(detail, Config)}" for detail in error.errors())
        raise ConfigError("\n".join(lines)) from error
    return _with_absolute_paths(config, path.resolve().parent)


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    def absolute(path: Path | None) -> Path | None:
        if path is None or str(path).startswith(CREDENTIAL):
            return path
        return folder / path

    camera = config.camera
    if isinstance(camera, FolderCamera):
        camera = camera.model_copy(update={"folder": absolute(camera.folder)})
    elif isinstance(camera, GenicamCamera):
        producers = [str(absolute(Path(p))) if p.endswith(".cti") else p for p in camera.producers]
        camera = camera.model_copy(update={"producers": producers})
    tls = config.mqtt.tls
    if tls is not None:
        tls = tls.model_copy(update={name: absolute(getattr(tls, name)) for name in type(tls).model_fields})
    mqtt = config.mqtt.model_copy(update={"password_file": absolute(config.mqtt.password_file), "tls": tls})
    inspection = config.inspection.model_copy(update={"model": _model_path(config.inspection.model, folder)})
    recipes = {
        name: recipe.model_copy(update={"model": _model_path(recipe.model, folder)})
        for name, recipe in config.recipes.items()
    }
    storage = config.storage.model_copy(update={"root": absolute(config.storage.root)})
    review = config.review.model_copy(
        update={name: absolute(getattr(config.review, name)) for name in ("cert_file", "key_file", "base_data")}
    )
    return config.model_copy(
        update={
            "camera": camera,
            "mqtt": mqtt,
            "inspection": inspection,
            "recipes": recipes,
            "storage": storage,
            "review": review,
        }
    )


def _model_path(model: Path, folder: Path) -> Path:
    return folder / model if model.suffix else model  # a product of the model store has none
