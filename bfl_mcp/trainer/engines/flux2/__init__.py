"""The engine that trains: a LoRA for FLUX.2 [klein], from pictures to files.

`run.py` goes through the stages, in this order:

    download.py   the base model and the captioner, from a folder or the hub
    pictures.py   which pictures are trained on, and at which size
    captions.py   what each is said to show, in words that `captioner.py` writes where the user has none
    texts.py      captions → embeddings, kept on disk
    latents.py    pictures → latents, kept on disk
    training.py   the loop: `examples.py` what a step sees, `objective.py` what it is measured by, `adapter.py` and
                  `full.py` the weights that learn, `checkpoint.py` where it resumes
    lora_file.py  `lora.safetensors`; after full training `extract.py` makes the LoRA out of all weights
    samples.py    the same prompts before and after; `curve.py` the loss; `card.py` the model card

`recipe.py` holds the numbers of one training, `model.py` opens parts of the base model, `device.py` what it runs on,
`store.py` whole files, `telling.py` progress in words. Importing this package imports no PyTorch.
"""
