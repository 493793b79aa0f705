"""Defines the options of schedulers that a config may set, by diffusers' own names, for the schedulers of all rows."""

from typing import Any, Literal

from pydantic import Field, model_validator

from promptmill.configs.parameters import Strict

# Options of which a schedule can follow one.
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def _is_none(value: object) -> bool:
    return value is None


def _option(description: str, **limits: Any) -> Any:
    # Left out where it is not given, so that an option that comes later changes no fingerprint of a plan without it.
    return Field(None, exclude_if=_is_none, description=description, **limits)


class SchedulerOptions(Strict):
    """Declares options in place of those of the model's scheduler config.

    `eta` is no option of a scheduler's config, but an argument of its step.
    """

    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = _option("Which of the trained timesteps are taken.")
    steps_offset: int | None = _option("Added to timesteps, where their spacing is leading.", ge=0, le=1000)
    use_karras_sigmas: bool | None = _option("Sigmas as arXiv:2206.00364 spaces them.")
    use_exponential_sigmas: bool | None = _option("Sigmas at equal ratios.")
    use_beta_sigmas: bool | None = _option("Sigmas spaced by a beta distribution (arXiv:2407.12173).")
    use_lu_lambdas: bool | None = _option("Equal steps of the logarithm of signal to noise (arXiv:2206.00927).")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = _option(
        "What the denoiser predicts, where noise is added."
    )
    rescale_betas_zero_snr: bool | None = _option("No signal at the first timestep (arXiv:2305.08891), for v_prediction.")
    set_alpha_to_one: bool | None = _option("Whether the step after the last one has no noise.")
    clip_sample: bool | None = _option("Whether the predicted image is clipped at every step.")
    clip_sample_range: float | None = _option("The bound of clip_sample.", gt=0, le=1000, allow_inf_nan=False)
    final_sigmas_type: Literal["zero", "sigma_min"] | None = _option("The last sigma.")
    solver_order: int | None = _option("The order of a solver.", ge=1, le=3)
    lower_order_final: bool | None = _option("Whether the last steps are of lower order, for fewer than 15 steps.")
    euler_at_final: bool | None = _option("Whether the last step is Euler's.")
    original_inference_steps: int | None = _option(
        "The steps that a model was distilled to skip among, for lcm and tcd.", ge=1, le=1000
    )
    eta: float | None = _option("Noise of each step, for ddim and tcd.", ge=0, le=1, allow_inf_nan=False)
    shift: float | None = _option("How far a flow's timesteps are shifted to noise.", gt=0, le=100, allow_inf_nan=False)
    use_dynamic_shifting: bool | None = _option("Whether that follows the size of images instead.")
    shift_terminal: float | None = _option("The last sigma of a flow.", gt=0, lt=1, allow_inf_nan=False)
    sigma_min: float | None = _option("The least sigma of EDM.", gt=0, le=1000, allow_inf_nan=False)
    sigma_max: float | None = _option("The greatest sigma of EDM.", gt=0, le=10_000, allow_inf_nan=False)
    sigma_schedule: Literal["karras", "exponential"] | None = _option("How EDM spaces its sigmas.")

    @property
    def given(self) -> dict[str, Any]:
        """Return the options that are set, by diffusers' names."""
        return {name: value for name, value in self if value is not None}

    @property
    def of_config(self) -> dict[str, Any]:
        """Return the set options that belong to a scheduler's config."""
        return {name: value for name, value in self.given.items() if name != "eta"}

    @model_validator(mode="after")
    def _one_kind_of_sigmas(self) -> "SchedulerOptions":
        several = [name for name in SIGMAS if getattr(self, name)]
        if len(several) > 1:
            raise ValueError(f"{' and '.join(several)} do not go together; set one of them")
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} is not below sigma_max {self.sigma_max:g}")
        return self
