import numpy as np
def test_x(tiny_classifier):
    from ray_mlc import synthetic
    s=tiny_classifier.predict_proba(synthetic.documents(60,seed=5)["text"].to_pylist())
    print(np.quantile(s,[0,.1,.25,.5,.75,.9,1]), s.std(), s.std(axis=0), (s>=.6).sum(axis=1))
