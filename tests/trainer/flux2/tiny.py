"""A FLUX.2 [klein] of random weights and a captioner of random weights, small enough to train on a CPU in seconds.

Every part is the class that the real model is made of, only narrower, so that a test which runs over these folders runs
the code that trains the real thing.
"""

from pathlib import Path
from typing import Any, Final

# Qwen's format: a thought that is turned off is an empty one.
_CHAT: Final = r"""{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string -%}{{ message.content }}{%- else -%}
{%- for part in message.content -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}
{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}
{%- endif -%}"""
_SPECIAL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# With weights as small as those that training starts from, every picture and every question had the same answer.
_LOUD: Final = 0.5


def build_tokenizer(max_tokens: int = 128) -> Any:
    """Make a tokenizer of single bytes that speaks Qwen's chat format. Few tokens make for fast steps."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    fast = Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        vocab={char: index for index, char in enumerate(alphabet)},
        merges=[],
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=max_tokens,
        extra_special_tokens=list(_SPECIAL),
    )
    fast.chat_template = _CHAT
    return fast


def build_klein(folder: Path, *, seed: int = 0, width: int = 128) -> Path:
    """Save a pipeline of 2 double-stream and 4 single-stream blocks under `folder`."""
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        text_width = 32
        # The pipeline reads the hidden states 9, 18 and 27, and the last one is normalised: so 28 layers.
        encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=text_width,
                intermediate_size=64,
                num_hidden_layers=30,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                max_position_embeddings=1024,
                tie_word_embeddings=True,
            )
        )
        latent_channels = 4
        transformer = Flux2Transformer2DModel(
            patch_size=1,
            in_channels=4 * latent_channels,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=width // 32,
            joint_attention_dim=3 * text_width,
            timestep_guidance_channels=32,
            axes_dims_rope=(8, 8, 8, 8),
            guidance_embeds=False,
        )
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=4,
            sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        vae.bn.running_mean.normal_(0, 0.2)
        vae.bn.running_var.uniform_(0.2, 0.5)
        # The values of the published pipeline: timesteps are shifted by the size when it samples, not in training.
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            shift=3.0,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        )
    Flux2KleinPipeline(
        scheduler=scheduler, vae=vae.eval(), text_encoder=encoder.eval(), tokenizer=tokenizer, transformer=transformer
    ).save_pretrained(folder)
    return folder


def build_captioner(folder: Path, *, seed: int = 1) -> Path:
    """Save a Qwen3-VL of random weights under `folder`."""
    import torch
    from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = build_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
            "max_position_embeddings": 4096,
            "initializer_range": _LOUD,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "initializer_range": _LOUD,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    # It says nothing, in letters.
    model.generation_config.suppress_tokens = [
        index for token, index in tokenizer.get_vocab().items() if not (token.isascii() and token.isalpha())
    ]
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=16, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 1024, "longest_edge": 16384}
    ).save_pretrained(folder)
    return folder
