BEGIN TRANSACTION;
CREATE TABLE arm (
	id INTEGER NOT NULL, 
	study INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	title TEXT NOT NULL, 
	parent VARCHAR, 
	settings_json TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (study, name), 
	FOREIGN KEY(study) REFERENCES study (id)
);
INSERT INTO "arm" VALUES(1,1,0,'baseline','baseline',NULL,'{"model":{"depth":4,"norm":"none","residual":false,"residual_scale":1.0},"train":{"epochs":15,"lr":0.1}}');
INSERT INTO "arm" VALUES(2,1,1,'batchnorm','BatchNorm after each conv, before ReLU','baseline','{"model":{"depth":4,"norm":"before_relu","residual":false,"residual_scale":1.0},"train":{"epochs":15,"lr":0.1}}');
CREATE TABLE attempt (
	id INTEGER NOT NULL, 
	trial INTEGER NOT NULL, 
	claim INTEGER NOT NULL, 
	runner VARCHAR NOT NULL, 
	slot VARCHAR NOT NULL, 
	folder TEXT NOT NULL, 
	started DOUBLE NOT NULL, 
	ended DOUBLE, 
	outcome VARCHAR, 
	exit_code INTEGER, 
	signal INTEGER, 
	error TEXT, 
	seconds DOUBLE, 
	resumed_from INTEGER, 
	code_sha256 VARCHAR, 
	environment_json TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (trial, claim), 
	CONSTRAINT attempt_ended_has_outcome CHECK ((ended IS NULL) = (outcome IS NULL)), 
	FOREIGN KEY(trial) REFERENCES trial (id), 
	FOREIGN KEY(runner) REFERENCES runner (id)
);
INSERT INTO "attempt" VALUES(1,1,1,'r','cpu:0','trials/0843612ef7926c6e/1',1.79525274322167634958e+09,1.79525274322634792326e+09,'ok',NULL,NULL,NULL,47.0,NULL,'c0de','{}');
INSERT INTO "attempt" VALUES(2,2,1,'r','cpu:0','trials/3b43855f9dba07b2/1',1.79525274323020672803e+09,1.79525274323244142526e+09,'diverged',NULL,NULL,NULL,47.0,NULL,'c0de','{}');
INSERT INTO "attempt" VALUES(3,3,1,'r','cpu:0','trials/a707127cdac812cb/1',1.7952527432349007129e+09,1.79525274324133682249e+09,'interrupted',NULL,NULL,NULL,NULL,NULL,'','{}');
INSERT INTO "attempt" VALUES(4,4,1,'r','cpu:0','trials/c51dca44bfaa49f9/1',1.7952527432365887165e+09,1.79525274323855876922e+09,'oom',NULL,NULL,'out of memory: 23.1 GiB of 24 GiB in use',54.0,NULL,'c0de','{}');
INSERT INTO "attempt" VALUES(5,3,2,'r','cpu:0','trials/a707127cdac812cb/2',1.79525274324435734751e+09,1.79525274324968695644e+09,'interrupted',NULL,NULL,NULL,NULL,NULL,'c0de','{"python": "3.11.7", "torch": "2.15.0"}');
INSERT INTO "attempt" VALUES(6,3,3,'r','cpu:1','trials/a707127cdac812cb/3',1.79525274325088906287e+09,1.79525274325536584856e+09,'ok',0,NULL,NULL,54.0,2,'c0de','{"data_sha256": "da7a", "python": "3.11.7", "torch": "2.15.0"}');
INSERT INTO "attempt" VALUES(7,4,2,'r','cpu:0','trials/c51dca44bfaa49f9/2',1.79525274325879430773e+09,1795252743.26262,'interrupted',NULL,NULL,NULL,NULL,NULL,'c0de','{"python": "3.11.7", "torch": "2.15.0"}');
CREATE TABLE measurement (
	id INTEGER NOT NULL, 
	trial INTEGER NOT NULL, 
	claim INTEGER NOT NULL, 
	metric VARCHAR NOT NULL, 
	epoch INTEGER, 
	value DOUBLE, 
	kind VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT measurement_kind CHECK (kind IN ('num', 'nan', '+inf', '-inf')), 
	CONSTRAINT measurement_value CHECK ((kind = 'num') = (value IS NOT NULL)), 
	FOREIGN KEY(trial) REFERENCES trial (id)
);
INSERT INTO "measurement" VALUES(1,1,1,'val_acc',NULL,30.8,'num');
INSERT INTO "measurement" VALUES(2,1,1,'macro_f1',NULL,28.36,'num');
INSERT INTO "measurement" VALUES(3,1,1,'val_loss',NULL,3.0599999999999996092e+00,'num');
INSERT INTO "measurement" VALUES(4,1,1,'parameters',NULL,1200000.0,'num');
INSERT INTO "measurement" VALUES(5,1,1,'flops',NULL,35000000.0,'num');
INSERT INTO "measurement" VALUES(6,1,1,'images_per_s',NULL,5200.0,'num');
INSERT INTO "measurement" VALUES(7,2,1,'val_acc',NULL,NULL,'nan');
INSERT INTO "measurement" VALUES(8,2,1,'val_loss',NULL,NULL,'+inf');
INSERT INTO "measurement" VALUES(9,3,3,'val_acc',1,20.0,'num');
INSERT INTO "measurement" VALUES(10,3,3,'val_loss',1,3.5,'num');
INSERT INTO "measurement" VALUES(11,3,3,'val_acc',2,25.0,'num');
INSERT INTO "measurement" VALUES(12,3,3,'val_loss',2,3.5,'num');
INSERT INTO "measurement" VALUES(13,3,3,'val_acc',3,29.9,'num');
INSERT INTO "measurement" VALUES(14,3,3,'val_loss',3,3.5,'num');
INSERT INTO "measurement" VALUES(15,3,3,'val_acc',NULL,29.9,'num');
INSERT INTO "measurement" VALUES(16,3,3,'macro_f1',NULL,27.25,'num');
INSERT INTO "measurement" VALUES(17,3,3,'val_loss',NULL,NULL,'+inf');
INSERT INTO "measurement" VALUES(18,4,2,'val_acc',1,31.0,'num');
CREATE TABLE meta (
	"key" VARCHAR NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema','1');
CREATE TABLE "plan" (
	study INTEGER NOT NULL, 
	plan_json TEXT NOT NULL, 
	sha256 VARCHAR NOT NULL, 
	written DOUBLE NOT NULL, 
	PRIMARY KEY (study), 
	FOREIGN KEY(study) REFERENCES study (id)
);
INSERT INTO "plan" VALUES(1,'{"analysis":{"alpha":0.05,"pairing":"seed","select":"last"},"contrasts":[["ladder","batchnorm","baseline"]],"goal":"max","primary":"val_acc","seeds":[1,2]}','f6db07b04155ec36ebea14065f0b80d03dd9479ed8e787b13b2d100c3565517c',1.79525274321481347083e+09);
CREATE TABLE replicate (
	id INTEGER NOT NULL, 
	arm INTEGER NOT NULL, 
	role VARCHAR NOT NULL, 
	seed INTEGER NOT NULL, 
	trial INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (arm, role, seed), 
	CONSTRAINT replicate_role CHECK (role IN ('main', 'confirm', 'tune')), 
	FOREIGN KEY(arm) REFERENCES arm (id), 
	FOREIGN KEY(trial) REFERENCES trial (id)
);
INSERT INTO "replicate" VALUES(1,1,'main',1,1,0);
INSERT INTO "replicate" VALUES(2,2,'main',1,2,1);
INSERT INTO "replicate" VALUES(3,1,'main',2,3,2);
INSERT INTO "replicate" VALUES(4,2,'main',2,4,3);
CREATE TABLE runner (
	id VARCHAR NOT NULL, 
	study INTEGER, 
	host VARCHAR NOT NULL, 
	boot_id VARCHAR NOT NULL, 
	lock_file TEXT NOT NULL, 
	command TEXT NOT NULL, 
	started DOUBLE NOT NULL, 
	heartbeat DOUBLE NOT NULL, 
	ended DOUBLE, 
	PRIMARY KEY (id), 
	FOREIGN KEY(study) REFERENCES study (id)
);
INSERT INTO "runner" VALUES('r',1,'here','b','l','ablate run',1.79525274321891713138e+09,1.79525274321891713138e+09,1.79525274326358985901e+09);
CREATE TABLE study (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	profile VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	spec_json TEXT NOT NULL, 
	spec_sha256 VARCHAR NOT NULL, 
	file TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name, profile, version), 
	UNIQUE (name, profile, spec_sha256)
);
INSERT INTO "study" VALUES(1,'basenet','',1,'{"schema": "ablate/v1", "name": "basenet", "question": "", "task": "basenet:train", "metrics": {"val_acc": {"goal": "max", "unit": "%", "title": ""}, "macro_f1": {"goal": "max", "unit": "%", "title": ""}}, "settings": {"model": {"norm": "none", "depth": 4, "residual": false, "residual_scale": 1.0}, "train": {"lr": 0.1, "epochs": 15}}, "steps": [{"name": "batchnorm", "title": "BatchNorm after each conv, before ReLU", "set": {"model.norm": "before_relu"}, "from": null, "branch": false, "requires": [], "group": null}], "designs": ["ladder"], "seeds": [1, 2], "analysis": {"alpha": 0.05, "pairing": "seed", "select": "last"}, "execution": {"dtype": "float32", "threads": 1}, "resources": {"gpus": 0, "cpus": null, "timeout": null, "stall_timeout": null, "retries": 0}, "reference": null, "assumed": {}}','8e50c2809e62448a207ef773610ebbbddbc62d3207c3fb547f7919ce5a4fb28a','/somewhere/basenet.yaml',1.79525274321374559401e+09);
CREATE TABLE trial (
	id INTEGER NOT NULL, 
	fingerprint VARCHAR NOT NULL, 
	task TEXT NOT NULL, 
	settings_json TEXT NOT NULL, 
	execution_json TEXT NOT NULL, 
	resources_json TEXT NOT NULL, 
	seed INTEGER NOT NULL, 
	source VARCHAR DEFAULT 'trained' NOT NULL, 
	state VARCHAR DEFAULT 'waiting' NOT NULL, 
	reason TEXT, 
	claim INTEGER DEFAULT '0' NOT NULL, 
	owner VARCHAR, 
	lease_until DOUBLE, 
	result_claim INTEGER, 
	errors INTEGER DEFAULT '0' NOT NULL, 
	idle_deaths INTEGER DEFAULT '0' NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT trial_state CHECK (state IN ('waiting', 'running', 'done', 'failed')), 
	CONSTRAINT trial_source CHECK (source IN ('trained', 'imported')), 
	CONSTRAINT trial_running_has_owner CHECK ((state = 'running') = (owner IS NOT NULL)), 
	CONSTRAINT trial_running_has_lease CHECK ((state = 'running') = (lease_until IS NOT NULL)), 
	CONSTRAINT trial_done_has_result CHECK ((state = 'done') = (result_claim IS NOT NULL)), 
	UNIQUE (fingerprint), 
	FOREIGN KEY(owner) REFERENCES runner (id)
);
INSERT INTO "trial" VALUES(1,'0843612ef7926c6eb3a76ec6235c57a33d343165bd1620d9de5c541358b109f2','basenet:train','{"model":{"depth":4,"norm":"none","residual":false,"residual_scale":1.0},"train":{"epochs":15,"lr":0.1}}','{"dtype":"float32","threads":1}','{"cpus":null,"gpus":0,"retries":0,"stall_timeout":null,"timeout":null}',1,'trained','done',NULL,1,NULL,NULL,1,0,0);
INSERT INTO "trial" VALUES(2,'3b43855f9dba07b20ae15b53eaed4b248db37049066264b9d525be02b1054e5b','basenet:train','{"model":{"depth":4,"norm":"before_relu","residual":false,"residual_scale":1.0},"train":{"epochs":15,"lr":0.1}}','{"dtype":"float32","threads":1}','{"cpus":null,"gpus":0,"retries":0,"stall_timeout":null,"timeout":null}',1,'trained','done',NULL,1,NULL,NULL,1,0,0);
INSERT INTO "trial" VALUES(3,'a707127cdac812cb186a65b96bd0b95d4c4f84fb20c7ecbae7e289731fa2afbb','basenet:train','{"model":{"depth":4,"norm":"none","residual":false,"residual_scale":1.0},"train":{"epochs":15,"lr":0.1}}','{"dtype":"float32","threads":1}','{"cpus":null,"gpus":0,"retries":0,"stall_timeout":null,"timeout":null}',2,'trained','done',NULL,3,NULL,NULL,3,0,0);
INSERT INTO "trial" VALUES(4,'c51dca44bfaa49f97a2a94478b2fbc55d47f4f0f782f258aaa365a8f3625b1b1','basenet:train','{"model":{"depth":4,"norm":"before_relu","residual":false,"residual_scale":1.0},"train":{"epochs":15,"lr":0.1}}','{"dtype":"float32","threads":1}','{"cpus":null,"gpus":0,"retries":0,"stall_timeout":null,"timeout":null}',2,'trained','waiting',NULL,2,NULL,NULL,NULL,0,0);
CREATE INDEX replicate_trial ON replicate (trial);
CREATE UNIQUE INDEX attempt_running ON attempt (trial) WHERE ended IS NULL;
CREATE UNIQUE INDEX measurement_epoch ON measurement (trial, metric, epoch) WHERE epoch IS NOT NULL;
CREATE UNIQUE INDEX measurement_final ON measurement (trial, metric) WHERE epoch IS NULL;
COMMIT;
