"""The workflow document, with the model name, the data set and the token replaced, and nothing else.

The document's bf16=True needs a GPU or ``use_cpu=True`` in transformers; on a machine without one the line is added.
"""

import pytest
import torch


@pytest.fixture
def family():
    return "llama"


def test_workflow(base, tmp_path):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    import tptt

    target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora_config = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=target_modules,
    ).to_dict()
    base_model_name = str(base)
    config = tptt.TpttConfig(base_model_name=base_model_name, lora_config=lora_config)
    model = tptt.TpttModel(config, attn_implementation="eager")
    model.backbone.print_trainable_parameters()

    tokenizer = AutoTokenizer.from_pretrained(base_model_name)

    def preprocess_fn(samples):
        return tokenizer(
            samples["text"], truncation=True, max_length=384, padding="longest", return_attention_mask=True
        )

    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(f"w{i}" for i in torch.randint(3, 60, (n,), generator=generator).tolist()) for n in range(10, 22)]
    raw_dataset = Dataset.from_dict({"text": texts}).select(range(12))
    tokenized_dataset = raw_dataset.map(preprocess_fn, batched=True, remove_columns=raw_dataset.column_names)

    # the one-element tuples are the document's
    initial_weight = (0.01,)
    final_weight = (0.5,)
    transition_step = (100,)
    liza_callback = tptt.AdjustMaGWeightCallback(
        model,
        initial_weight=initial_weight,
        final_weight=final_weight,
        transition_step=transition_step,
    )
    data_collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)
    dir_path = str(tmp_path / "out")
    training_args = TrainingArguments(
        output_dir=dir_path,
        per_device_train_batch_size=3,
        num_train_epochs=2,
        learning_rate=5e-4,
        bf16=True,
        seed=42,
        **({} if torch.cuda.is_available() else {"use_cpu": True}),
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=tokenized_dataset,
        data_collator=data_collator,
        callbacks=[liza_callback],
    )
    trainer.train()
    assert trainer.state.global_step == 8
    tokenizer.save_pretrained(dir_path)
    model.save_pretrained(dir_path)
    model_tptt = AutoModelForCausalLM.from_pretrained(dir_path, trust_remote_code=True)
    assert 0.01 < float(model_tptt.state_dict()[next(k for k in model_tptt.state_dict() if "mag_weight" in k)]) < 0.06
    pipe = tptt.TpttPipeline(model=model_tptt, tokenizer=tokenizer, device="cpu")
    result = pipe("w5 w6 w7", max_new_tokens=100)
    assert result[0]["generated_text"].startswith("w5 w6 w7") and len(result[0]["generated_text"]) > 20
